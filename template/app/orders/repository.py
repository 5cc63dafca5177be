"""Repositories and queries of orders. `storage.py` chooses who implements the two protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload, selectinload

from app.orders.domain import Order, OrderEvent, OrderItem, OrderStatus
from app.orders.models import InventoryLevel, OrderItemRow, OrderRow, order_ids
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.database.upserts import add_to_totals
from app.platform.errors import VersionConflict


@dataclass(frozen=True)
class OrderTimes:
    """The times at which an order was placed and last changed, by the write side's clock."""

    placed_at: datetime
    changed_at: datetime


class OrderRepository(Protocol):
    """Loads and saves orders within the unit of work's transaction."""

    async def next_id(self) -> int:
        """Return an id that no other order has or will get."""

    async def get(self, order_id: int) -> Order | None: ...

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        """Store `order`, to which `events` led from `expected_version` (0: it is new).

        Raises VersionConflict if the stored version is another one; DuplicateCommand, with the
        order as it was then, if commands are remembered and this one was executed before; and
        IdempotencyKeyReused if it had another content then. In each case nothing is stored, and
        the transaction can go on.
        """


OrderRepositoryFactory = Callable[[UnitOfWork], OrderRepository]

_TIMES = (OrderRow.created_at, OrderRow.updated_at)


class SqlOrderRepository:
    """Stores the present state in `orders` and `order_items`."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._session: AsyncSession = uow.session

    async def next_id(self) -> int:
        return int(await self._session.scalar(select(order_ids.next_value())) or 0)

    async def get(self, order_id: int) -> Order | None:
        query = (
            select(OrderRow)
            .where(OrderRow.id == order_id)
            .options(joinedload(OrderRow.items))
            .execution_options(populate_existing=True)  # it may have changed since the last read
        )
        row = (await self._session.scalars(query)).unique().one_or_none()
        return None if row is None else _order(row)

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        if expected_version == 0:
            return await self._insert(order)
        return await self._update(order, expected_version)

    async def _insert(self, order: Order) -> OrderTimes:
        statement = upsert(OrderRow).values(
            id=order.id,
            user_id=order.user_id,
            status=order.status,
            total=order.total,
            version=order.version,
        )
        new = statement.on_conflict_do_nothing().returning(*_TIMES)
        row = (await self._session.execute(new)).one_or_none()
        if row is None:
            raise VersionConflict("order", order.id)
        await self._session.execute(
            insert(OrderItemRow),
            [
                {
                    "order_id": order.id,
                    "position": position,
                    "sku": item.sku,
                    "quantity": item.quantity,
                    "unit_price": item.unit_price,
                }
                for position, item in enumerate(order.items)
            ],
        )
        return OrderTimes(*row)

    async def _update(self, order: Order, expected_version: int) -> OrderTimes:
        # The items stay as they were placed: no event changes them.
        changed = (
            update(OrderRow)
            .where(OrderRow.id == order.id, OrderRow.version == expected_version)
            .values(status=order.status, version=order.version, updated_at=func.now())
            .returning(*_TIMES)
            .execution_options(synchronize_session=False)
        )
        row = (await self._session.execute(changed)).one_or_none()
        if row is None:
            raise VersionConflict("order", order.id)
        return OrderTimes(*row)


def _order(row: OrderRow) -> Order:
    return Order(row.id, row.user_id, order_items(row), OrderStatus(row.status), row.version)


def order_items(row: OrderRow) -> tuple[OrderItem, ...]:
    return tuple(OrderItem(item.sku, item.quantity, item.unit_price) for item in row.items)


@dataclass(frozen=True)
class OrderView:
    """An order, as a query returns it."""

    id: int
    user_id: int
    items: tuple[OrderItem, ...]
    total: Decimal
    status: OrderStatus
    version: int


@dataclass(frozen=True)
class OrderFilter:
    """A filter of orders; None matches all."""

    user_id: int | None = None
    status: OrderStatus | None = None


class OrderQueries(Protocol):
    """Queries on orders. Each is a short transaction, so that waiting holds no connection."""

    async def get(self, order_id: int) -> OrderView | None: ...

    async def page(
        self, order_filter: OrderFilter, before: int | None, limit: int
    ) -> list[OrderView]:
        """Return up to `limit` orders with ids below `before`, newest first."""


OrderQueriesFactory = Callable[[async_sessionmaker[AsyncSession]], OrderQueries]


class SqlOrderQueries:
    """Queries on the tables that SqlOrderRepository writes."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, order_id: int) -> OrderView | None:
        query = select(OrderRow).where(OrderRow.id == order_id).options(joinedload(OrderRow.items))
        async with self._sessions() as session:
            row = (await session.scalars(query)).unique().one_or_none()
        return None if row is None else _view(row)

    async def page(
        self, order_filter: OrderFilter, before: int | None, limit: int
    ) -> list[OrderView]:
        query = (
            select(OrderRow)
            .order_by(OrderRow.id.desc())
            .limit(limit)
            .options(selectinload(OrderRow.items))
        )
        if order_filter.user_id is not None:
            query = query.where(OrderRow.user_id == order_filter.user_id)
        if order_filter.status is not None:
            query = query.where(OrderRow.status == order_filter.status)
        if before is not None:
            query = query.where(OrderRow.id < before)
        async with self._sessions() as session:
            return [_view(row) for row in await session.scalars(query)]


def _view(row: OrderRow) -> OrderView:
    return OrderView(
        row.id, row.user_id, order_items(row), row.total, OrderStatus(row.status), row.version
    )


class InventoryRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def reserved(self, sku: str) -> int:
        found = await self._session.get(InventoryLevel, sku)
        return 0 if found is None else found.reserved

    async def reserve(self, quantities: Mapping[str, int]) -> None:
        """Add to the reserved pieces of each SKU."""
        reserved = InventoryLevel.reserved
        await add_to_totals(self._session, InventoryLevel.sku, reserved, quantities)
