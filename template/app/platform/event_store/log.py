"""All events of a category in one order, for those who follow it."""

import asyncio
from typing import Generic

from sqlalchemy import (
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.platform.errors import Unavailable
from app.platform.event_store.category import Category, E, S
from app.platform.event_store.model import EventRow
from app.platform.event_store.store import COLUMNS, WRITERS_LOCK, StoredEvent, stored

_RETRY_SECONDS = 0.01
# Writers that come meanwhile queue up behind a reader that waits, so it gives up soon, and returns.
_LOCK_TIMEOUT = "50ms"


_LOCK_NOT_AVAILABLE = "55P03"

_HEAD = select(func.max(EventRow.position))


class LogBusy(Unavailable):
    title = "The event log cannot be read at the moment"


class EventLog(Generic[E, S]):
    """All events of a category in the order of their positions, for those who follow it."""

    def __init__(
        self,
        sessions: async_sessionmaker[AsyncSession],
        category: Category[E, S],
        patience: float = 5.0,
    ) -> None:
        self._sessions = sessions
        self._category = category
        self._patience = patience

    async def read_all(self, after: int, limit: int) -> list[StoredEvent[E]]:
        """Up to `limit` events above the position `after`. Going on behind the last one of them
        misses nothing, however transactions overlap. There are gaps between positions.

        Raises LogBusy when a writer's transaction stays open all the time.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                return await self._read(after, limit)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
            if asyncio.get_running_loop().time() >= deadline:
                raise LogBusy(f"a transaction that appends to {self._category.name} does not end")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self, after: int, limit: int) -> list[StoredEvent[E]]:
        if await self._head() <= after:
            return []
        head = await self._settled_head()
        query = (
            select(*COLUMNS)
            .where(EventRow.category == self._category.name)
            .where(EventRow.position > after, EventRow.position <= head)
            .order_by(EventRow.position)
            .limit(limit)
        )
        async with self._sessions() as session:
            return [stored(self._category, tuple(row)) for row in await session.execute(query)]

    async def _settled_head(self) -> int:
        """A position up to which every event of the category has been committed, or never will."""
        async with self._sessions() as session, session.begin():
            await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            await session.execute(
                text("SELECT pg_advisory_xact_lock(:kind, :lock)"),
                {"kind": WRITERS_LOCK, "lock": self._category.lock},
            )
            # A statement of its own, begun with the lock: it sees all who had it before.
            return await session.scalar(_HEAD) or 0

    async def _head(self) -> int:
        async with self._sessions() as session:
            return await session.scalar(_HEAD) or 0
