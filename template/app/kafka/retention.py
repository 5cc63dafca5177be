"""Keeping the inbox small: old rows go, in small deletes, by one process at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.database import is_unavailable
from app.kafka.inbox import InboxEntry

log = structlog.get_logger(__name__)

BATCH = 5_000
INTERVAL_SECONDS = 600.0
PAUSE_SECONDS = 0.1
# Any number will do; it only has to be this job's own.
_LOCK = 0x1B0C5


@asynccontextmanager
async def inbox_retention(
    sessions: async_sessionmaker[AsyncSession], keep: timedelta
) -> AsyncIterator[None]:
    """Delete inbox rows older than `keep`, every few minutes, for the length of the block."""
    task = asyncio.create_task(_forever(sessions, keep), name="inbox-retention")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _forever(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> None:
    while True:
        try:
            deleted = await delete_expired(sessions, keep)
            if deleted:
                log.info("inbox rows deleted", rows=deleted, older_than=str(keep))
        except Exception as error:  # the next round tries again; the inbox only grows meanwhile
            level = log.info if is_unavailable(error) else log.exception
            level("inbox retention failed", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(INTERVAL_SECONDS)


async def delete_expired(sessions: async_sessionmaker[AsyncSession], keep: timedelta) -> int:
    """Delete the rows older than `keep`, a batch a transaction; return how many.

    Returns at once when another process is at it.
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
