"""The inbox: the events that each consumer has already applied.

A row is inserted in the transaction of the event's effects, so either both exist or neither.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from operator import attrgetter
from typing import cast
from uuid import UUID

import structlog
from sqlalchemy import (
    ARRAY,
    DateTime,
    Index,
    String,
    Table,
    Uuid,
    bindparam,
    case,
    delete,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.database.errors import is_unavailable, summary


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


async def applied(session: AsyncSession, consumer: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of `event_ids` that `consumer` has applied."""
    rows = select(InboxEntry.event_id).where(
        InboxEntry.consumer == consumer, InboxEntry.event_id == func.any(list(event_ids))
    )
    return set(await session.scalars(rows))


log = structlog.get_logger(__name__)

BATCH = 5_000
RETENTION_INTERVAL_SECONDS = 600.0
PAUSE_SECONDS = 0.1
# An arbitrary number that no other advisory lock of the service uses.
_LOCK = 0x1B0C5


@asynccontextmanager
async def inbox_retention(
    sessions: async_sessionmaker[AsyncSession], keep: timedelta
) -> AsyncIterator[None]:
    """Delete inbox rows older than `keep`, every few minutes, for the length of the block."""
    task = asyncio.create_task(_run_retention(sessions, keep), name="inbox-retention")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _run_retention(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> None:
    while True:
        try:
            deleted = await delete_expired(sessions, keep)
            if deleted:
                log.info("inbox rows deleted", rows=deleted, older_than=str(keep))
        except Exception as error:  # the next round retries; meanwhile the inbox grows
            level = log.info if is_unavailable(error) else log.exception
            level("inbox retention failed", error=summary(error))
        await asyncio.sleep(RETENTION_INTERVAL_SECONDS)


async def delete_expired(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> int:
    """Delete the rows older than `keep`, in one transaction for each batch; return their number.

    Returns 0 at once if another process is deleting.
    """
    total = 0
    while True:
        deleted = await _delete_batch(sessions, keep)
        total += deleted
        if deleted < BATCH:
            return total
        await asyncio.sleep(PAUSE_SECONDS)


async def _delete_batch(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> int:
    async with sessions() as session, session.begin():
        if not await session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return 0
        expired = (
            select(InboxEntry.consumer, InboxEntry.event_id)
            .where(InboxEntry.processed_at < func.now() - keep)
            .limit(BATCH)
        )
        key = tuple_(InboxEntry.consumer, InboxEntry.event_id)
        connection = await session.connection()
        result = await connection.execute(delete(InboxEntry).where(key.in_(expired)))
        return result.rowcount
