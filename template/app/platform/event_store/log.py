"""The event log: all events of a category in one order, for readers that follow it."""

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
from app.platform.event_store.store import COLUMNS, WRITERS_LOCK, StoredEvent, stored_event

_RETRY_SECONDS = 0.01
# New writers queue behind a waiting reader, so the reader gives up soon and tries again.
_LOCK_TIMEOUT = "50ms"


_LOCK_NOT_AVAILABLE = "55P03"

_HEAD = select(func.max(EventRow.position))


class LogBusy(Unavailable):
    title = "The event log cannot be read at the moment"


class EventLog(Generic[E, S]):
    """All events of a category, in the order of their positions."""

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
        """Return up to `limit` events above the position `after`.

        A reader that continues after the last of them misses no event, however transactions
        overlap. Positions have gaps. Raises LogBusy while a writer's transaction stays open.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                return await self._read(after, limit)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
            if asyncio.get_running_loop().time() >= deadline:
                raise LogBusy(f"a transaction that appended to {self._category.name} stays open")
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
            return [
                stored_event(self._category, tuple(row)) for row in await session.execute(query)
            ]

    async def _settled_head(self) -> int:
        """Return a position up to which no event of the category can still be committed."""
        async with self._sessions() as session, session.begin():
            await session.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            await session.execute(
                text("SELECT pg_advisory_xact_lock(:kind, :lock)"),
                {"kind": WRITERS_LOCK, "lock": self._category.lock},
            )
            # A new statement with the lock held sees every commit of earlier holders.
            return await session.scalar(_HEAD) or 0

    async def _head(self) -> int:
        async with self._sessions() as session:
            return await session.scalar(_HEAD) or 0
