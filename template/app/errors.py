"""The errors of the service, and how the HTTP API tells them: RFC 9457 problem details."""

import re
from typing import ClassVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import problems
from app.database import is_unavailable
from app.domain.errors import DomainError
from app.problems import FieldProblem, problem_response

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 1


class ServiceError(Exception):
    """What a caller is told. The message is its `detail`, the class its `type`."""

    status: ClassVar[int]
    title: ClassVar[str]

    @property
    def headers(self) -> dict[str, str]:
        return {}


class NotFound(ServiceError):
    status = 404
    title = "There is no such thing"

    def __init__(self, what: str, id: object) -> None:
        super().__init__(f"there is no {what} {id}")


class Conflict(ServiceError):
    """The request contradicts what is there."""

    status = 409
    title = "The request contradicts the present state"


class VersionConflict(ServiceError):
    """Somebody else changed the thing first."""

    status = 412
    title = "The thing has changed meanwhile"

    def __init__(self, what: str, id: object) -> None:
        super().__init__(
            f"{what} {id} is not at the expected version: get it again, and send its ETag in If-Match"
        )


class Unprocessable(ServiceError):
    """The request is well formed and makes no sense."""

    status = 422
    title = "The request is not valid"

    def __init__(self, detail: str, pointer: str | None = None, location: str = "body") -> None:
        super().__init__(detail)
        self.fields = (
            []
            if pointer is None
            else [FieldProblem(location=location, pointer=pointer, detail=detail)]
        )


class PreconditionRequired(ServiceError):
    status = 428
    title = "The request must say which version it is meant for"


class Unavailable(ServiceError):
    """It may work later."""

    status = 503
    title = "The service cannot answer at the moment"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}


class DatabaseAway(Unavailable):
    title = "The database is away"


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem, and document the format."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(UnexpectedErrors)
    problems.document(app)


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return problem_response(
        request.scope,
        error.status,
        title=error.title,
        detail=str(error),
        type=_type_of(error),
        errors=getattr(error, "fields", []),
        headers=error.headers,
    )


async def _domain_error(request: Request, error: Exception) -> Response:
    return problem_response(
        request.scope, 409, title=Conflict.title, detail=str(error), type=_type_of(error)
    )


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    fields = [FieldProblem.of(entry["loc"], entry["msg"]) for entry in error.errors()]
    return problem_response(
        request.scope,
        422,
        title=Unprocessable.title,
        detail="; ".join(f"{field.place}: {field.detail}" for field in fields[:3]),
        type="urn:problem-type:validation-failed",
        errors=fields,
    )


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return problem_response(
        request.scope, error.status_code, detail=str(error.detail), headers=error.headers
    )


class UnexpectedErrors:
    """Answers what nothing else has caught: 503 while the database is away, 500 otherwise.

    It runs inside the tracing middleware, so that log and answer have the correlation id. The
    answer says nothing about the error; the log has all of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception as error:
            if started:  # the answer cannot be taken back: the server cuts the connection
                raise
            await _unexpected(scope, error)(scope, receive, send)


def _unexpected(scope: Scope, error: Exception) -> Response:
    if is_unavailable(error):
        log.warning("database away", error=f"{type(error).__name__}: {error}")
        away = DatabaseAway("the database does not answer: try again soon")
        return problem_response(
            scope,
            away.status,
            title=away.title,
            detail=str(away),
            type=_type_of(away),
            headers=away.headers,
        )
    log.exception("request failed", exc_info=error)
    return problem_response(
        scope, 500, detail="something went wrong here; the logs tell what, by the correlation id"
    )


def _type_of(error: Exception) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", type(error).__name__)
    return f"urn:problem-type:{'-'.join(words).lower()}"
