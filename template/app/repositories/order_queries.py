"""Where orders are read from. `OrderQueries` is the seam: a read model can take its place."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload, selectinload

from app.domain.orders import OrderItem, OrderStatus
from app.models import OrderRow
from app.repositories.orders import order_items


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
    """Which orders; None takes all."""

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
