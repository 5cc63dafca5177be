"""The write side, read in batches to rebuild a projection from.

It must be the database that the events come from, and no replica of it: a rebuild relies on what
was published being committed there already.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.cqrs.states import Customer, OrderState, Versioned
from app.models import OrderRow, User
from app.repositories.orders import order_items

S_co = TypeVar("S_co", bound=Versioned, covariant=True)


class Source(Protocol[S_co]):
    """The present state of all things of a kind. An event store can take the tables' place."""

    async def count(self, session: AsyncSession) -> int:
        """How many there are, or nearly: it is for showing progress only."""

    async def after(self, session: AsyncSession, id: int, limit: int) -> Sequence[S_co]:
        """The next states above `id`, in the order of their ids; none at the end."""


class OrderTables:
    """Orders, as SqlOrderRepository keeps them."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(OrderRow)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[OrderState]:
        query = (
            select(OrderRow)
            .where(OrderRow.id > id)
            .order_by(OrderRow.id)
            .limit(limit)
            .options(selectinload(OrderRow.items))
        )
        return [_state(row) for row in await session.scalars(query)]


class UserTable:
    """Users and their names."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(User)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[Customer]:
        query = select(User.id, User.username).where(User.id > id).order_by(User.id).limit(limit)
        return [Customer(row.id, row.username) for row in await session.execute(query)]


def _state(row: OrderRow) -> OrderState:
    return OrderState(
        row.id,
        row.version,
        row.user_id,
        row.status,
        order_items(row),
        row.total,
        row.created_at,
        row.updated_at,
    )
