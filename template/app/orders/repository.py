"""Repositories and queries of orders. `storage.py` chooses who implements the two protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

from sqlalchemy import (
    FromClause,
    Row,
    Select,
    bindparam,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload

from app.orders.domain import Order, OrderEvent, OrderItem, OrderStatus
from app.orders.models import InventoryLevel, OrderItemRow, OrderRow, order_ids
from app.platform.database.engine import table_of
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.database.upserts import add_to_totals
from app.platform.errors import VersionConflict
from app.users.models import User


@dataclass(frozen=True)
class OrderTimes:
    """The times at which an order was placed and last changed, by the write side's clock."""

    placed_at: datetime
    changed_at: datetime


class OrderRepository(Protocol):
    """Loads and saves orders within the unit of work's transaction."""

    async def next_id(self, user_id: int) -> int | None:
        """Return an id that no other order has or will get; None if there is no such user."""

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

# Statements that are built once, on tables rather than on mapped classes, cost each request least.
_USERS = table_of(User)
_ORDERS = table_of(OrderRow)
_ITEMS = table_of(OrderItemRow)
_TIMES = (_ORDERS.c.created_at, _ORDERS.c.updated_at)

_NEXT_ID = select(order_ids.next_value()).where(exists().where(_USERS.c.id == bindparam("user_id")))
_INSERT = upsert(_ORDERS).on_conflict_do_nothing().returning(*_TIMES)
_INSERT_ITEMS = insert(_ITEMS)


async def next_order_id(session: AsyncSession, user_id: int) -> int | None:
    """Return a new id for an order of the user; None if there is no such user."""
    return await session.scalar(_NEXT_ID, {"user_id": user_id})


class SqlOrderRepository:
    """Stores the present state in `orders` and `order_items`."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._session: AsyncSession = uow.session

    async def next_id(self, user_id: int) -> int | None:
        return await next_order_id(self._session, user_id)

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
        new = {
            "id": order.id,
            "user_id": order.user_id,
            "status": order.status.value,
            "total": order.total,
            "version": order.version,
        }
        row = (await self._session.execute(_INSERT, new)).one_or_none()
        if row is None:
            raise VersionConflict("order", order.id)
        await self._session.execute(
            _INSERT_ITEMS,
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
            update(_ORDERS)
            .where(_ORDERS.c.id == order.id, _ORDERS.c.version == expected_version)
            .values(status=order.status.value, version=order.version, updated_at=func.now())
            .returning(*_TIMES)
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


def _with_items(orders: FromClause) -> Select[*tuple[Any, ...]]:
    """Return a query of `orders`, newest first, with a row for each item."""
    of_order, item = orders.c, _ITEMS.c
    return (
        select(
            *(of_order.id, of_order.user_id, of_order.total, of_order.status, of_order.version),
            *(item.sku, item.quantity, item.unit_price),
        )
        .join_from(orders, _ITEMS, item.order_id == of_order.id, isouter=True)
        .order_by(of_order.id.desc(), item.position)
    )


_GET = _with_items(_ORDERS).where(_ORDERS.c.id == bindparam("order_id"))


class SqlOrderQueries:
    """Queries on the tables that SqlOrderRepository writes."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, order_id: int) -> OrderView | None:
        found = await self._read(_GET, order_id=order_id)
        return found[0] if found else None

    async def page(
        self, order_filter: OrderFilter, before: int | None, limit: int
    ) -> list[OrderView]:
        query = select(_ORDERS).order_by(_ORDERS.c.id.desc()).limit(limit)
        if order_filter.user_id is not None:
            query = query.where(_ORDERS.c.user_id == order_filter.user_id)
        if order_filter.status is not None:
            query = query.where(_ORDERS.c.status == order_filter.status.value)
        if before is not None:
            query = query.where(_ORDERS.c.id < before)
        return await self._read(_with_items(query.subquery()))

    async def _read(self, query: Select[*tuple[Any, ...]], **parameters: object) -> list[OrderView]:
        async with self._sessions() as session:
            rows = await session.execute(query, parameters)
            return [_view([*of_order]) for _, of_order in groupby(rows, attrgetter("id"))]


def _view(rows: Sequence[Row[*tuple[Any, ...]]]) -> OrderView:
    order = rows[0]
    items = (OrderItem(row.sku, row.quantity, row.unit_price) for row in rows if row.sku)
    return OrderView(
        order.id,
        order.user_id,
        tuple(items),
        order.total,
        OrderStatus(order.status),
        order.version,
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
