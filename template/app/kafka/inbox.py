"""The inbox: which events a consumer has already applied.

A row is inserted in the transaction of the event's effects, so both are there or neither is.
"""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import cast
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Index, String, Table, Uuid, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class InboxEntry(Base):
    """An event that a consumer has applied."""

    __tablename__ = "inbox"
    __table_args__ = (Index(None, "processed_at"),)

    consumer: Mapped[str] = mapped_column(String(100), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    processed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )


_INBOX = cast(Table, InboxEntry.__table__)

_CLAIM = (
    insert(_INBOX)
    .from_select(
        ["consumer", "event_id"],
        select(
            bindparam("consumer", type_=String),
            func.unnest(bindparam("event_ids", type_=ARRAY(Uuid))),
        ),
    )
    .on_conflict_do_nothing()
    .returning(_INBOX.c.event_id)
)


async def claim(session: AsyncSession, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Record `event_ids` as applied by `consumer`; return those that were not applied before.

    The ids are inserted in one statement and in sorted order, so that two transactions that claim
    overlapping sets wait for each other instead of deadlocking.
    """
    parameters = {"consumer": consumer, "event_ids": sorted(set(event_ids), key=attrgetter("int"))}
    return set(await session.scalars(_CLAIM, parameters))


async def applied(session: AsyncSession, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Those of `event_ids` that `consumer` has applied."""
    rows = select(InboxEntry.event_id).where(
        InboxEntry.consumer == consumer, InboxEntry.event_id == func.any(list(event_ids))
    )
    return set(await session.scalars(rows))
