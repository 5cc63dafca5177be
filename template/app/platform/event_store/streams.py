"""Streams of event-sourced entities: their ids, their states, and the rows that are read."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstrumentedAttribute

from app.platform.event_store.category import Category, S
from app.platform.event_store.causation import imported_events
from app.platform.event_store.store import NO_STREAM, EventStore, StreamState

State = Any  # of whatever the streams are about; it has an `id`
View = Any  # what is read of it
Sessions = async_sessionmaker[AsyncSession]
Imported = tuple[int, Sequence[tuple[Any, datetime]]]  # a stream id; events and their times
Repair = Callable[[AsyncSession, StreamState[State]], Awaitable[None]]


class Streams(ABC):
    """The streams of a category, and the rows that are read, for `app event-store`."""

    category: ClassVar[Category[Any, State]]
    summary: ClassVar[str]
    """The field of a state that is shown in lists."""
    compared: ClassVar[Sequence[str]]
    """The fields in which a state and its view have the same values."""

    def __init__(self, repair: Repair | None = None) -> None:
        """`repair` rewrites the rows of a stream; without it they can only be rebuilt."""
        self.repair = repair

    @abstractmethod
    async def views(self, sessions: Sessions, above: int, below: int) -> Mapping[int, View]:
        """Return the views of the streams whose ids lie between `above` and `below`."""

    @abstractmethod
    async def unimported(self, session: AsyncSession, limit: int) -> Sequence[Imported]:
        """Return up to `limit` entities that exist only as rows, with the events that led to them.

        Raises ImportRefused if it is not known which events led to a row.
        """

    async def import_rows(self, session: AsyncSession, limit: int) -> int:
        """Append the events of up to `limit` entities that exist only as rows; return the count.

        Nothing is published. Raises ImportRefused.
        """
        entities = await self.unimported(session, limit)
        for stream_id, history in entities:
            new = imported_events(self.category, stream_id, history)
            await EventStore(session, self.category).append(stream_id, new, NO_STREAM)
        return len(entities)


@dataclass(frozen=True)
class StreamIds:
    """Stream ids of entities that have another key: a table with the columns `id` and `key`."""

    id: InstrumentedAttribute[int]
    key: InstrumentedAttribute[str]

    async def find(self, session: AsyncSession, key: str) -> int | None:
        return await session.scalar(select(self.id).where(self.key == key))

    async def lock(self, session: AsyncSession, key: str) -> int:
        """Return the stream of `key`, a new one if need be, locked until the transaction ends.

        Writers of one stream wait for each other instead of being refused.
        """
        query = select(self.id).where(self.key == key).with_for_update()
        known = await session.scalar(query)
        if known is not None:
            return known
        new = insert(self.key.class_).values({self.key.key: key})
        await session.execute(new.on_conflict_do_nothing())
        return (await session.execute(query)).scalar_one()


T = TypeVar("T")


class StreamSource(Generic[S, T]):
    """The present states of all streams of a category, for rebuilding read models from events."""

    def __init__(self, category: Category[Any, S], state: Callable[[StreamState[S]], T]) -> None:
        self._category = category
        self._state = state

    async def count(self, session: AsyncSession) -> int:
        return await EventStore(session, self._category).count()

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[T]:
        store = EventStore(session, self._category)
        found = await store.load_many(await store.streams(id, limit))
        return [self._state(loaded) for loaded in found]
