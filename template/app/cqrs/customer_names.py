"""The read model `customer_names`: what users are called, joined to orders when they are read."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.cqrs.models import CustomerNameRow
from app.cqrs.projection import Customer, Projection, newest


async def write(session: AsyncSession, tables: Sequence[Table], states: Sequence[Customer]) -> None:
    (names,) = tables
    rows = [{"user_id": state.id, "username": state.username} for state in newest(states)]
    # A user is created once, so a second row could only say the same.
    await session.execute(insert(names).on_conflict_do_nothing(), rows)


CUSTOMER_NAMES = Projection("customer-names", [cast(Table, CustomerNameRow.__table__)], write)
