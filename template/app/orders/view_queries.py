"""Queries on the read side, which replace those on the write side."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, ScalarSelect, Select, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.orders.customer_names import CustomerNameRow
from app.orders.domain import OrderItem, OrderStatus
from app.orders.repository import OrderFilter, OrderView
from app.orders.sales import DailySalesRow
from app.orders.views import OrderViewRow
from app.platform.database.engine import table_of


@dataclass(frozen=True)
class OrderDetail(OrderView):
    """An order, with the customer's name and the times.

    `customer_name` is null until the customer's own event has been consumed, `placed_at` for orders
    known only from messages of version 1.0.0.
    """

    customer_name: str | None
    item_count: int
    placed_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class OrderDetailFilter(OrderFilter):
    """A filter of orders; None matches all."""

    customer_name: str | None = None


@dataclass(frozen=True)
class DailySales:
    """The revenue and the number of paid orders of a day (UTC)."""

    day: date
    orders: int
    revenue: Decimal


_ORDERS = table_of(OrderViewRow)
_NAMES = table_of(CustomerNameRow)
_VIEWS = select(_ORDERS, _NAMES.c.username).outerjoin(_NAMES, _NAMES.c.user_id == _ORDERS.c.user_id)
_GET = _VIEWS.where(_ORDERS.c.order_id == bindparam("of_order"))


class OrderViewQueries:
    """Queries on `order_views`: the OrderQueries of a service with a read side."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, order_id: int) -> OrderDetail | None:
        found = await self._read(_GET, of_order=order_id)
        return found[0] if found else None

    async def page(
        self, order_filter: OrderFilter, before: int | None, limit: int
    ) -> list[OrderView]:
        return [
            *await self.find(
                OrderDetailFilter(order_filter.user_id, order_filter.status), before, limit
            )
        ]

    async def find(
        self, order_filter: OrderDetailFilter, before: int | None, limit: int
    ) -> list[OrderDetail]:
        """Return up to `limit` orders with ids below `before`, newest first."""
        query = _VIEWS.order_by(_ORDERS.c.order_id.desc()).limit(limit)
        if order_filter.user_id is not None:
            query = query.where(_ORDERS.c.user_id == order_filter.user_id)
        if order_filter.customer_name is not None:
            query = query.where(_ORDERS.c.user_id == _called(order_filter.customer_name))
        if order_filter.status is not None:
            query = query.where(_ORDERS.c.status == order_filter.status.value)
        if before is not None:
            query = query.where(_ORDERS.c.order_id < before)
        return await self._read(query)

    async def _read(
        self, query: Select[*tuple[Any, ...]], **parameters: object
    ) -> list[OrderDetail]:
        async with self._sessions() as session:
            return [_detail(row) for row in await session.execute(query, parameters)]


class SalesQueries:
    """Queries on `daily_sales`."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def daily(self, first: date, last: date) -> Sequence[DailySales]:
        """Return the days with sales from `first` to `last`, oldest first."""
        query = (
            select(DailySalesRow)
            .where(DailySalesRow.day.between(first, last), DailySalesRow.orders > 0)
            .order_by(DailySalesRow.day)
        )
        async with self._sessions() as session:
            rows = await session.scalars(query)
            return [DailySales(row.day, row.orders, row.revenue) for row in rows]


def _called(name: str) -> ScalarSelect[int]:
    # A scalar, so that the index on user and id returns the page in order.
    of_name = select(_NAMES.c.user_id).where(_NAMES.c.username == name)
    return of_name.order_by(_NAMES.c.user_id).limit(1).scalar_subquery()


def _detail(row: Row[*tuple[Any, ...]]) -> OrderDetail:
    return OrderDetail(
        row.order_id,
        row.user_id,
        tuple(
            OrderItem(str(item["sku"]), int(item["quantity"]), Decimal(item["unit_price"]))
            for item in row.items
        ),
        row.total,
        OrderStatus(row.status),
        row.version,
        row.username,
        row.item_count,
        row.placed_at,
        row.updated_at,
    )
