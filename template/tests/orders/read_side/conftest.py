"""A shop: a write side, the events that it published, and their delivery in whatever order."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import wiring
from app.orders.customer_names import CUSTOMER_NAMES, USER_NAMES, Customer, CustomerNameRow
from app.orders.domain import OrderItem
from app.orders.projections import SUBSCRIPTIONS
from app.orders.repository import SqlOrderRepository
from app.orders.sales import DAILY_SALES, DailySalesRow, SaleRow
from app.orders.service import OrderService
from app.orders.views import ORDER_ROWS, ORDER_VIEWS, OrderState, OrderViewRow
from app.platform.database.engine import Base, Database
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import BaseEvent
from app.platform.projections.projection import RebuildRow
from app.platform.projections.rebuild import Rebuild
from app.users.repository import UserRepository
from app.users.service import UserService

ORDER_TABLES = (OrderViewRow, SaleRow, DailySalesRow)
READ_TABLES = (*ORDER_TABLES, CustomerNameRow)

ITEMS = [OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("12.00"))]

Row = tuple[object, ...]
Content = dict[str, list[Row]]


@dataclass
class Recorder:
    """A publisher that keeps the events of committed transactions."""

    published: list[BaseEvent]
    taken: list[BaseEvent] = field(default_factory=list)

    async def publish(self, event: BaseEvent) -> None:
        self.taken.append(event)

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        self.published.extend(self.taken)


@dataclass
class Shop:
    """`events` are those published so far, in their order. None is delivered by itself."""

    database: Database
    events: list[BaseEvent] = field(default_factory=list)

    @property
    def units(self) -> UnitOfWorkFactory:
        return UnitOfWorkFactory(self.database.sessions, self._bind)

    def _bind(self, _session: AsyncSession) -> Recorder:
        return Recorder(self.events)

    # The write side

    async def sign_up(self, name: str) -> int:
        async with self.units.begin() as uow:
            users = UserService(UserRepository(uow.session), uow.events)
            return (await users.create(f"{name}@example.com", name, None)).id

    async def place(self, user_id: int, items: Sequence[OrderItem] = ITEMS) -> int:
        async with self.units.begin() as uow:
            return (await _orders(uow).place(user_id, items)).id

    async def pay(self, order_id: int) -> None:
        async with self.units.begin() as uow:
            await _orders(uow).pay(order_id, None)

    async def cancel(self, order_id: int) -> None:
        async with self.units.begin() as uow:
            await _orders(uow).cancel(order_id, None)

    # The read side

    async def deliver(self, *events: BaseEvent) -> None:
        """Hand `events` to the projectors, in one batch each.

        There is no inbox here: what comes twice has to be recognised by the projection itself.
        """
        for subscription in SUBSCRIPTIONS:
            mine = [event for event in events if type(event) in subscription.handlers]
            async with self.units.begin() as uow:
                for model, run in groupby(mine, key=type):
                    await subscription.handlers[model](list(run), uow)

    async def content(self, *models: type[Base]) -> Content:
        """The rows of the read models, by table."""
        found: Content = {}
        async with self.database.sessions() as session:
            for model in models or READ_TABLES:
                table = model.__table__
                rows = await session.execute(select(table).order_by(*table.primary_key))
                found[model.__tablename__] = [tuple(row) for row in rows]
        return found

    async def empty(self) -> None:
        """Empty every table: an example of its own for each run of a property."""
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        async with self.database.engine.begin() as connection:
            await connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        self.events.clear()

    async def forget(self) -> None:
        """Empty the read side."""
        async with self.database.engine.begin() as connection:
            for model in READ_TABLES:
                await connection.execute(delete(model))

    async def corrupt(self) -> None:
        """Leave behind the rows that a faulty projector could have written."""
        async with self.database.engine.begin() as connection:
            await connection.execute(update(OrderViewRow).values(status="lost"))
            await connection.execute(update(DailySalesRow).values(orders=999))
            await connection.execute(text("DELETE FROM customer_names"))

    # Rebuilds

    def rebuild_views(self, batch: int = 2) -> Rebuild[OrderState]:
        return Rebuild(self.database, ORDER_VIEWS, ORDER_ROWS, batch)

    def rebuild_sales(self, batch: int = 2) -> Rebuild[OrderState]:
        return Rebuild(self.database, DAILY_SALES, ORDER_ROWS, batch)

    def rebuild_names(self, batch: int = 2) -> Rebuild[Customer]:
        return Rebuild(self.database, CUSTOMER_NAMES, USER_NAMES, batch)

    async def rebuild_all(self) -> None:
        for rebuild in (self.rebuild_views(), self.rebuild_sales(), self.rebuild_names()):
            await rebuild.run(lambda progress: None)

    async def registered(self) -> list[str]:
        async with self.database.sessions() as session:
            return list(await session.scalars(select(RebuildRow.projection)))

    async def shadows(self) -> list[str]:
        async with self.database.engine.connect() as connection:
            names = await connection.scalars(
                text(
                    "SELECT relname FROM pg_class WHERE relname LIKE '%\\_shadow' AND relkind = 'r'"
                )
            )
            return sorted(names)


def _orders(uow: UnitOfWork) -> OrderService:
    return OrderService(SqlOrderRepository(uow), uow.events)


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    shop = Shop(database)
    yield shop
    for entry in wiring.service.projections:  # the next test's database has no shadows
        await entry.abandon(database)
