"""Dependencies of routes, by type. A slice defines its own beside its routes.

Each is `async def`, even if it awaits nothing: FastAPI runs plain functions in a thread, which costs
more than their work.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Header, Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.http.idempotency import Idempotency, IdempotencyRepository
from app.platform.http.schemas import DIGITS
from app.platform.runtime import Runtime

# An id outside of the column's range is invalid; any other is looked up.
PathId = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), DIGITS, Path()]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes the request safe to repeat: the same key gets the same answer",
        examples=["9f1c0a52-8a4e-4c59-9f0c-3d5a5f4f2c11"],
    ),
]


async def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]


# FastAPI resolves a dependency's own dependencies wherever it is used, so these two have none.
async def get_unit_of_work(request: Request) -> AsyncIterator[UnitOfWork]:
    runtime = await get_runtime(request)
    async with runtime.units.begin() as uow:
        yield uow


# With the scope "function" the transaction commits before the response is sent. FastAPI's default is
# to commit afterwards: a client would see a success even if the commit then fails.
UnitOfWorkDep = Annotated[UnitOfWork, Depends(get_unit_of_work, scope="function")]


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    runtime = await get_runtime(request)
    async with runtime.database.sessions() as session:
        yield session


# For reading only: it is never committed.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


async def get_idempotency(
    request: Request, uow: UnitOfWorkDep, key: IdempotencyKey = None
) -> Idempotency:
    """Return the keeper of idempotency keys. Raises RequestValidationError for several keys.

    FastAPI itself would take the first one and ignore the rest.
    """
    if len(set(request.headers.getlist("Idempotency-Key"))) > 1:
        message = "sent several times with different values: send one key"
        location = ("header", "Idempotency-Key")
        raise RequestValidationError([{"type": "value_error", "loc": location, "msg": message}])
    return Idempotency(IdempotencyRepository(uow.session), key)


IdempotencyDep = Annotated[Idempotency, Depends(get_idempotency, scope="function")]


async def reject_unknown_query(request: Request) -> None:
    """Reject a query parameter that the route does not have.

    A misspelt filter would otherwise select everything.
    """
    if not request.query_params:
        return
    known = dict.fromkeys(_query_parameters(request.scope["route"].dependant))
    accepted = f"there are: {', '.join(known)}" if known else "there are none here"
    if unknown := [name for name in request.query_params if name not in known]:
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name), "msg": f"unknown; {accepted}"}
                for name in unknown
            ]
        )


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (part.alias or name for name, part in model.model_fields.items())
        else:
            yield field.alias
    for part in dependant.dependencies:
        yield from _query_parameters(part)
