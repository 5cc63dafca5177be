"""The inbox: the events that each consumer has already applied.

A row is inserted in the transaction of the event's effects, so either both exist or neither.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    DateTime,
    Index,
    String,
    Uuid,
    bindparam,
    case,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base, table_of
from app.platform.database.retention import Retention


class InboxEntry(Base):
    """An event that a consumer has applied."""

    __tablename__ = "inbox"
    __table_args__ = (Index(None, "processed_at"),)

    consumer: Mapped[str] = mapped_column(String(100), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    processed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )


_INBOX = table_of(InboxEntry)

_EVENT_IDS = bindparam("event_ids", type_=ARRAY(Uuid))
_NEW = (
    insert(_INBOX)
    .from_select(
        ["consumer", "event_id"],
        select(bindparam("consumer", type_=String), func.unnest(_EVENT_IDS)),
    )
    .on_conflict_do_nothing()
    .returning(_INBOX.c.event_id)
    .cte("new")
)
# Usually all are new; then no ids have to be returned.
_ALL_NEW = func.count() == func.cardinality(_EVENT_IDS)
_CLAIM = select(_ALL_NEW, case((~_ALL_NEW, func.array_agg(_NEW.c.event_id)))).select_from(_NEW)


async def claim(session: AsyncSession, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Record `event_ids` as applied by `consumer`; return those that were not applied before.

    One statement inserts the ids in sorted order, so that transactions with overlapping sets wait for
    each other instead of deadlocking.
    """
    asked = set(event_ids)
    parameters = {"consumer": consumer, "event_ids": sorted(asked, key=attrgetter("int"))}
    all_new, new = (await session.execute(_CLAIM, parameters)).one()
    return asked if all_new else set(new or ())


async def applied_at(
    session: AsyncSession, event_id: UUID, consumers: Sequence[str]
) -> dict[str, datetime]:
    """Return when each of `consumers` has applied the event, as long as the inbox remembers it."""
    rows = select(InboxEntry.consumer, InboxEntry.processed_at).where(
        InboxEntry.event_id == event_id, InboxEntry.consumer == func.any(list(consumers))
    )
    return {row.consumer: row.processed_at for row in await session.execute(rows)}


async def applied(session: AsyncSession, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of `event_ids` that `consumer` has applied."""
    rows = select(InboxEntry.event_id).where(
        InboxEntry.consumer == consumer, InboxEntry.event_id == func.any(list(event_ids))
    )
    return set(await session.scalars(rows))


def retention(keep: timedelta) -> Retention:
    """Keep the rows for `keep`; an event that arrives later than that is applied again."""
    return Retention(_INBOX, "processed_at", keep, lock=0x1B0C5)
