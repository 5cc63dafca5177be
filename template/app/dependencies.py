"""What routes ask for, by type."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.idempotency import Idempotency, IdempotencyRepository
from app.repositories.orders import BindOrderQueries, BindOrders, InventoryRepository
from app.repositories.users import PostRepository, UserRepository
from app.runtime import Runtime
from app.services.orders import OrderReads, OrderReadSettings, OrderService
from app.services.users import PostService, UserService
from app.unit_of_work import UnitOfWork

# An id outside of the column's range is refused; all others are looked for.
PathId = Annotated[int, Path(ge=-(2**63), le=2**63 - 1)]


@dataclass(frozen=True)
class OrderAccess:
    """Where orders are kept and where they are read from, as `wiring` says."""

    repository: BindOrders
    queries: BindOrderQueries
    read_settings: OrderReadSettings


def get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


def get_order_access(request: Request) -> OrderAccess:
    access: OrderAccess = request.app.state.orders
    return access


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
OrderAccessDep = Annotated[OrderAccess, Depends(get_order_access)]


async def get_unit_of_work(runtime: RuntimeDep) -> AsyncIterator[UnitOfWork]:
    async with runtime.units.begin() as uow:
        yield uow


# With the scope "function" the block ends, and so commits, before the answer goes out. (FastAPI's
# default ends it afterwards: a client would be told of a success that the commit then refuses.)
UnitOfWorkDep = Annotated[UnitOfWork, Depends(get_unit_of_work, scope="function")]


async def get_session(runtime: RuntimeDep) -> AsyncIterator[AsyncSession]:
    async with runtime.database.sessions() as session:
        yield session


# For reading only: nothing commits it.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


def get_user_service(uow: UnitOfWorkDep) -> UserService:
    return UserService(UserRepository(uow.session), uow.events)


def get_post_service(uow: UnitOfWorkDep) -> PostService:
    return PostService(PostRepository(uow.session), UserRepository(uow.session), uow.events)


def get_order_service(uow: UnitOfWorkDep, orders: OrderAccessDep) -> OrderService:
    return OrderService(orders.repository(uow), UserRepository(uow.session), uow.events)


def get_order_reads(runtime: RuntimeDep, orders: OrderAccessDep) -> OrderReads:
    return OrderReads(orders.queries(runtime.database.sessions), orders.read_settings)


def get_idempotency(uow: UnitOfWorkDep) -> Idempotency:
    return Idempotency(IdempotencyRepository(uow.session))


def get_inventory(session: SessionDep) -> InventoryRepository:
    return InventoryRepository(session)


def get_users(session: SessionDep) -> UserRepository:
    return UserRepository(session)


UserServiceDep = Annotated[UserService, Depends(get_user_service, scope="function")]
PostServiceDep = Annotated[PostService, Depends(get_post_service, scope="function")]
OrderServiceDep = Annotated[OrderService, Depends(get_order_service, scope="function")]
OrderReadsDep = Annotated[OrderReads, Depends(get_order_reads)]
IdempotencyDep = Annotated[Idempotency, Depends(get_idempotency, scope="function")]
InventoryDep = Annotated[InventoryRepository, Depends(get_inventory, scope="function")]
UsersDep = Annotated[UserRepository, Depends(get_users, scope="function")]
