"""Deletes old rows of tables that would grow for ever, in the background and in small batches."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Table, delete, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.platform.background import in_background
from app.platform.database.errors import is_unavailable, summary

BATCH = 5_000
INTERVAL_SECONDS = 600.0
PAUSE_SECONDS = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Retention:
    """The time for which rows of a table are kept, counted from the time in the column `since`.

    `lock` is the number of an advisory lock, so that one process at a time deletes.
    """

    table: Table
    since: str
    keep: timedelta
    lock: int


@asynccontextmanager
async def deleting_expired(
    sessions: async_sessionmaker[AsyncSession], retention: Retention
) -> AsyncIterator[None]:
    """Delete rows older than `retention.keep`, every few minutes, for the length of the block."""
    name = f"{retention.table.name}-retention"
    async with in_background(_repeat(sessions, retention), name):
        yield


async def _repeat(sessions: async_sessionmaker[AsyncSession], retention: Retention) -> None:
    named = log.bind(table=retention.table.name)
    while True:
        try:
            deleted = await delete_expired(sessions, retention)
            if deleted:
                named.info("expired rows deleted", rows=deleted, older_than=str(retention.keep))
        except Exception as error:  # the next round retries; meanwhile the table grows
            level = named.info if is_unavailable(error) else named.exception
            level("expired rows not deleted", error=summary(error))
        await asyncio.sleep(INTERVAL_SECONDS)


async def delete_expired(sessions: async_sessionmaker[AsyncSession], retention: Retention) -> int:
    """Delete the expired rows, in one transaction for each batch; return their number.

    Returns 0 at once if another process is deleting.
    """
    total = 0
    while True:
        deleted = await _delete_batch(sessions, retention)
        total += deleted
        if deleted < BATCH:
            return total
        await asyncio.sleep(PAUSE_SECONDS)


async def _delete_batch(sessions: async_sessionmaker[AsyncSession], retention: Retention) -> int:
    table = retention.table
    key: Sequence[Any] = list(table.primary_key)
    async with sessions() as session, session.begin():
        lock = text("SELECT pg_try_advisory_xact_lock(:key)")
        if not await session.scalar(lock, {"key": retention.lock}):
            return 0
        expired = (
            select(*key).where(table.c[retention.since] < func.now() - retention.keep).limit(BATCH)
        )
        connection = await session.connection()
        result = await connection.execute(delete(table).where(tuple_(*key).in_(expired)))
        return result.rowcount
