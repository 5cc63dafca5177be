"""Reads of the read side. It answers for orders in the write side's place, and for more."""

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
    """An order, with what only the read side knows without a join over the write side.

    `customer_name` is null until the customer's own event has come, `placed_at` for orders known
    only from messages that did not carry it.
    """

    customer_name: str | None
    item_count: int
    placed_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class OrderDetailFilter(OrderFilter):
    """A choice of orders; None takes all."""

    customer_name: str | None = None


@dataclass(frozen=True)
class DailySales:
    """The sales of a day (UTC), and the number of orders."""

    day: date
    orders: int
    revenue: Decimal


class OrderViewQueries:
    """Reads `order_views`: the OrderQueries of a service with a read side."""

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
        """Up to `limit` orders, newest first, beginning below the id `before`."""
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
    """Reads `daily_sales`."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def daily(self, first: date, last: date) -> Sequence[DailySales]:
        """The days from `first` to `last` on which there was any, oldest first."""
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
    # One value, found first: so the index of the user's orders gives the page in its order.
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
