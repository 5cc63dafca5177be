"""Repositories of orders. `OrderRepository` is the seam: an event store can take its place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from sqlalchemy import ARRAY, BigInteger, String, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload, selectinload

from app.orders.domain import Order, OrderEvent, OrderItem, OrderStatus
from app.orders.models import InventoryLevel, OrderItemRow, OrderRow, order_ids
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.errors import VersionConflict


@dataclass(frozen=True)
class OrderTimes:
    """The times at which an order was placed and last changed, as the write side has them."""

    placed_at: datetime
    changed_at: datetime


class DuplicateCommand(Exception):
    """This command was carried out before. `order` is what it made of the order then."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"the command that brought order {order.id} to {order.version} came twice")
        self.order = order


class OrderRepository(Protocol):
    """Loads and saves orders within the unit of work's transaction."""

    async def next_id(self) -> int:
        """An id that no order has or will get."""

    async def get(self, order_id: int) -> Order | None: ...

    async def save(
        self, order: Order, events: Sequence[OrderEvent], expected_version: int
    ) -> OrderTimes:
        """Store `order`, which `events` brought from `expected_version` (0: it is new) to its own.

        Raises VersionConflict when the stored version is another one, and DuplicateCommand where
        commands are remembered and this one is not new, or IdempotencyKeyReused if it was another
        one then. In each case nothing is stored, and the transaction can go on.
        """


BindOrders = Callable[[UnitOfWork], OrderRepository]

_TIMES = (OrderRow.created_at, OrderRow.updated_at)


class SqlOrderRepository:
    """Keeps the present state in `orders` and `order_items`."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._session: AsyncSession = uow.session

    async def next_id(self) -> int:
        return int(await self._session.scalar(select(order_ids.next_value())) or 0)

    async def get(self, order_id: int) -> Order | None:
        query = (
            select(OrderRow)
            .where(OrderRow.id == order_id)
            .options(joinedload(OrderRow.items))
            .execution_options(populate_existing=True)  # it may have changed since the last time
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
    """An order for reading."""

    id: int
    user_id: int
    items: tuple[OrderItem, ...]
    total: Decimal
    status: OrderStatus
    version: int


@dataclass(frozen=True)
class OrderFilter:
    """A choice of orders; None takes all."""

    user_id: int | None = None
    status: OrderStatus | None = None


class OrderQueries(Protocol):
    """Reads of orders. Each is a short transaction of its own, so that nothing is held between."""

    async def get(self, order_id: int) -> OrderView | None: ...

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        """Up to `limit` orders, newest first, beginning below the id `before`."""


BindOrderQueries = Callable[[async_sessionmaker[AsyncSession]], OrderQueries]


class SqlOrderQueries:
    """Reads what SqlOrderRepository writes."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, order_id: int) -> OrderView | None:
        query = select(OrderRow).where(OrderRow.id == order_id).options(joinedload(OrderRow.items))
        async with self._sessions() as session:
            row = (await session.scalars(query)).unique().one_or_none()
        return None if row is None else _view(row)

    async def page(self, wanted: OrderFilter, before: int | None, limit: int) -> list[OrderView]:
        query = (
            select(OrderRow)
            .order_by(OrderRow.id.desc())
            .limit(limit)
            .options(selectinload(OrderRow.items))
        )
        if wanted.user_id is not None:
            query = query.where(OrderRow.user_id == wanted.user_id)
        if wanted.status is not None:
            query = query.where(OrderRow.status == wanted.status)
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
        query = select(InventoryLevel.reserved).where(InventoryLevel.sku == sku)
        return await self._session.scalar(query) or 0

    async def reserve(self, quantities: Mapping[str, int]) -> None:
        """Add to what is reserved of each SKU. Rows are locked in the order of their SKUs."""
        if not quantities:
            return
        skus, counts = zip(*sorted(quantities.items()), strict=True)
        # As two arrays: a statement has at most 32,767 arguments, and a batch may have more SKUs.
        rows = select(
            func.unnest(literal(skus, ARRAY(String))),
            func.unnest(literal(counts, ARRAY(BigInteger))),
        )
        new = upsert(InventoryLevel).from_select(["sku", "reserved"], rows)
        total = InventoryLevel.reserved + new.excluded.reserved
        await self._session.execute(
            new.on_conflict_do_update(index_elements=[InventoryLevel.sku], set_={"reserved": total})
        )
