"""Queries on the read side, which replace those on the write side."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import ScalarSelect, Select, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.orders.customer_names import CustomerNameRow
from app.orders.domain import OrderItem, OrderStatus
from app.orders.repository import OrderFilter, OrderView
from app.orders.sales import DailySalesRow
from app.orders.views import OrderViewRow


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


class OrderViewQueries:
    """Queries on `order_views`: the OrderQueries of a service with a read side."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, order_id: int) -> OrderDetail | None:
        found = await self._read(_views().where(OrderViewRow.order_id == order_id))
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
        query = _views().order_by(OrderViewRow.order_id.desc()).limit(limit)
        if order_filter.user_id is not None:
            query = query.where(OrderViewRow.user_id == order_filter.user_id)
        if order_filter.customer_name is not None:
            query = query.where(OrderViewRow.user_id == _called(order_filter.customer_name))
        if order_filter.status is not None:
            query = query.where(OrderViewRow.status == order_filter.status)
        if before is not None:
            query = query.where(OrderViewRow.order_id < before)
        return await self._read(query)

    async def _read(self, query: Select[OrderViewRow, str | None]) -> list[OrderDetail]:
        async with self._sessions() as session:
            return [_detail(row, name) for row, name in await session.execute(query)]


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


def _views() -> Select[OrderViewRow, str | None]:
    name = CustomerNameRow.user_id == OrderViewRow.user_id
    return select(OrderViewRow, CustomerNameRow.username).outerjoin(CustomerNameRow, name)


def _called(name: str) -> ScalarSelect[int]:
    # A scalar, so that the index on user and id returns the page in order.
    of_name = select(CustomerNameRow.user_id).where(CustomerNameRow.username == name)
    return of_name.order_by(CustomerNameRow.user_id).limit(1).scalar_subquery()


def _detail(row: OrderViewRow, customer_name: str | None) -> OrderDetail:
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
        customer_name,
        row.item_count,
        row.placed_at,
        row.updated_at,
    )
