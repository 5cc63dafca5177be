"""The order service on the event store, as it is wired, with the outbox, and the command line."""

import json
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from typer.testing import Result

from app import wiring
from app.orders import storage
from app.orders.domain import Order, OrderItem
from app.orders.models import OrderItemRow, OrderRow
from app.orders.service import OrderService
from app.orders.stream import ORDERS
from app.platform.background import WakeUp
from app.platform.database.engine import Base, Database
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.event_store.store import EventStore
from app.platform.events.event import EventRegistry
from app.platform.outbox.model import OutboxRow
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.settings import OutboxSettings
from app.platform.tracing import Trace, bind_trace
from app.users.models import User
from tests.world import run_cli

ITEMS = [OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("12.00"))]


class Shop:
    """The order service on the event store, with the outbox and the inline read table."""

    def __init__(self, database: Database) -> None:
        self.database = database
        registry, published = EventRegistry("shop", wiring.service.events), WakeUp()
        options = OutboxSettings(_env_file=None)

        def bind(session: AsyncSession) -> OutboxPublisher:
            return OutboxPublisher(session, registry, options, 1_000_000, published)

        self.units = UnitOfWorkFactory(database.sessions, bind)

    @staticmethod
    def orders(uow: UnitOfWork) -> OrderService:
        return OrderService(storage.repository(uow), uow.events)

    async def place(
        self, command: str | None = None, user_id: int = 7, items: Sequence[OrderItem] = ITEMS
    ) -> Order:
        with bind_trace(Trace("story", command_id=command, actor="ada")):
            async with self.units.begin() as uow:
                return await self.orders(uow).place(user_id, items)

    async def pay(self, order_id: int, expected: set[int] | None = None) -> Order:
        async with self.units.begin() as uow:
            return await self.orders(uow).pay(order_id, expected)

    async def cancel(self, order_id: int, expected: set[int] | None = None) -> Order:
        async with self.units.begin() as uow:
            return await self.orders(uow).cancel(order_id, expected)

    async def count(self, model: type[Base]) -> int:
        async with self.database.sessions() as session:
            return await session.scalar(select(func.count()).select_from(model)) or 0

    async def published(self) -> list[dict[str, Any]]:
        async with self.database.sessions() as session:
            values = await session.scalars(select(OutboxRow.value).order_by(OutboxRow.id))
            return [json.loads(value) for value in values]

    async def content(self) -> list[tuple[object, ...]]:
        """The rows of the inline read table."""
        async with self.database.sessions() as session:
            found: list[tuple[object, ...]] = []
            for model in (OrderRow, OrderItemRow):
                table = model.__table__
                rows = await session.execute(select(table).order_by(*table.primary_key))
                found += [tuple(row) for row in rows]
            return found

    async def folded(self) -> list[Order]:
        async with self.database.sessions() as session:
            store = EventStore(session, ORDERS)
            return [each.state for each in await store.load_many(await store.streams(0, 1000))]

    async def empty(self) -> None:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        async with self.database.sessions() as session, session.begin():
            await session.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
            session.add(User(id=7, email="ada@example.com", username="ada"))


@pytest.fixture
async def shop(database: Database) -> Shop:
    shop = Shop(database)
    await shop.empty()
    return shop


Cli = Callable[..., Awaitable[Result]]


@pytest.fixture
def cli(shop: Shop, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)

    async def invoke(*arguments: str) -> Result:
        return await run_cli("event-store", *arguments, "--category", "order")

    return invoke
