"""The event store: append-only streams of events in PostgreSQL.

Three rules keep a stream intact. A version is used once (the primary key), it follows an existing
one (the condition of the insert), and no row is updated or deleted (a trigger).

Positions number the events of all streams. Transactions do not commit in the order of their
positions, so a reader of "everything above the last position" would miss late commits. Therefore
writers hold the category's advisory lock, shared, from before they take a position until they have
committed; they never wait for each other. `EventLog.read_all` takes the lock exclusively for a
moment, when no writer is between position and commit.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Generic
from uuid import UUID

from prometheus_client import Counter
from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    DateTime,
    Integer,
    String,
    Uuid,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform import tracing
from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category, E, S
from app.platform.event_store.model import EventRow

NO_STREAM = 0

# The first half of the keys of advisory locks: an arbitrary number that nothing else uses.
WRITERS_LOCK = 0x45564E54

append_conflicts = Counter(
    "event_store_append_conflicts_total",
    "Appends refused because the stream was not at the expected version",
    ["category"],
)
appended_events = Counter("event_store_appended_total", "Events appended", ["category"])


@dataclass(frozen=True)
class NewEvent(Generic[E]):
    """An event to append. An `event_id` can be stored only once."""

    event_id: UUID
    event: E
    metadata: dict[str, str] = field(default_factory=dict)
    recorded_at: datetime | None = None  # now, unless it is imported


@dataclass(frozen=True)
class StoredEvent(Generic[E]):
    """A stored event; `event` is in the newest version, whichever was stored."""

    position: int
    stream_id: int
    version: int
    event_id: UUID
    type: str
    data_version: int
    event: E
    metadata: dict[str, str]
    recorded_at: datetime


@dataclass(frozen=True)
class StreamState(Generic[S]):
    """The state of a stream, and the times of its first and its last event."""

    state: S
    version: int
    began_at: datetime
    changed_at: datetime


@dataclass(frozen=True)
class Appended:
    """The times of a stream's first event and of the first one that was appended."""

    began_at: datetime
    recorded_at: datetime


class BrokenStream(Exception):
    """A stream whose versions are not 1, 2, 3, …; the message names the missing one."""


class ImportRefused(Exception):
    """A row that no known events lead to. The message names the row, and what to do."""


_OF_STREAM = "category = :category AND stream_id = :stream_id"

_COLUMNS_OF_EVENT = (
    "category, stream_id, version, event_id, type, data_version, data, metadata, recorded_at"
)
_VALUES = (
    ":category, :stream_id, :expected + 1, :event_id, :type, :data_version,"
    " CAST(:data AS jsonb), CAST(:metadata AS jsonb), coalesce(:recorded_at, clock_timestamp())"
)
_TYPES: list[BindParameter[Any]] = [
    bindparam("category", type_=String),
    bindparam("stream_id", type_=BigInteger),
    bindparam("expected", type_=Integer),
    bindparam("event_id", type_=Uuid),
    bindparam("type", type_=String),
    bindparam("data_version", type_=Integer),
    bindparam("data", type_=String),
    bindparam("metadata", type_=String),
    bindparam("recorded_at", type_=DateTime(timezone=True)),
]
_INSERT_FIRST = text(
    "WITH writer AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(:lock_kind, :lock))"
    f" INSERT INTO events ({_COLUMNS_OF_EVENT}) SELECT {_VALUES} FROM writer"
    f" WHERE :expected = 0 OR EXISTS (SELECT FROM events WHERE {_OF_STREAM}"
    " AND version = :expected)"
    " ON CONFLICT DO NOTHING"
    " RETURNING recorded_at, coalesce("
    f"(SELECT recorded_at FROM events WHERE {_OF_STREAM} AND version = 1), recorded_at)"
).bindparams(*_TYPES, bindparam("lock_kind", type_=Integer), bindparam("lock", type_=Integer))
_INSERT_REST = text(f"INSERT INTO events ({_COLUMNS_OF_EVENT}) VALUES ({_VALUES})").bindparams(
    *_TYPES
)

_LOAD = text(
    "WITH snapshot AS (SELECT * FROM event_snapshots"
    f" WHERE {_OF_STREAM} AND state_version = :state_version AND version <= :at_version)"
    " SELECT version, NULL AS type, state_version AS data_version, state::text AS data,"
    " began_at, changed_at AS recorded_at FROM snapshot"
    " UNION ALL SELECT version, type, data_version, data::text, recorded_at, recorded_at"
    f" FROM events WHERE {_OF_STREAM} AND version <= :at_version"
    " AND version > coalesce((SELECT version FROM snapshot), 0) ORDER BY version"
).bindparams(
    bindparam("category", type_=String),
    bindparam("stream_id", type_=BigInteger),
    bindparam("state_version", type_=Integer),
    bindparam("at_version", type_=Integer),
)
_LOAD_MANY = text(
    "SELECT stream_id, version, type, data_version, data::text, recorded_at, recorded_at"
    " FROM events WHERE category = :category AND stream_id = ANY(:ids)"
    " ORDER BY stream_id, version"
).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))
_NEWEST = 2**31 - 1

_SNAPSHOT = text(
    "INSERT INTO event_snapshots AS old"
    " (category, stream_id, version, state_version, state, began_at, changed_at)"
    " VALUES (:category, :stream_id, :version, :state_version, CAST(:state AS jsonb),"
    " :began_at, :changed_at)"
    " ON CONFLICT (category, stream_id) DO UPDATE SET version = excluded.version,"
    " state_version = excluded.state_version, state = excluded.state,"
    " changed_at = excluded.changed_at"
    " WHERE (excluded.state_version, excluded.version) > (old.state_version, old.version)"
).bindparams(
    bindparam("state", type_=String),
    bindparam("began_at", type_=DateTime(timezone=True)),
    bindparam("changed_at", type_=DateTime(timezone=True)),
)

COLUMNS = (
    EventRow.position,
    EventRow.stream_id,
    EventRow.version,
    EventRow.event_id,
    EventRow.type,
    EventRow.data_version,
    EventRow.data,
    EventRow.context,
    EventRow.recorded_at,
)


class EventStore(Generic[E, S]):
    """The streams of one category, within a session's transaction. It never commits."""

    def __init__(self, session: AsyncSession, category: Category[E, S]) -> None:
        self._session = session
        self._category = category

    async def append(
        self, stream_id: int, events: Sequence[NewEvent[E]], expected_version: int
    ) -> Appended:
        """Append `events` to a stream that is at `expected_version` (NO_STREAM: it is new).

        Raises VersionConflict if it is at another version, or if the first event's id is already
        stored; then nothing was appended, and the transaction can go on.
        """
        first, *rest = (
            self._parameters(stream_id, version, event)
            for version, event in enumerate(events, start=expected_version)
        )
        with self._span("append", stream_id):
            row = await self._insert(stream_id, first, rest)
        appended_events.labels(self._category.name).inc(len(events))
        recorded_at, began_at = row
        return Appended(began_at, recorded_at)

    async def _insert(
        self, stream_id: int, first: dict[str, Any], rest: Sequence[dict[str, Any]]
    ) -> Sequence[datetime]:
        row = (await self._session.execute(_INSERT_FIRST, first)).one_or_none()
        if row is None:
            append_conflicts.labels(self._category.name).inc()
            raise VersionConflict(self._category.name, stream_id)
        # Winning the first version reserves the rest: no writer can append after a missing event.
        if rest:
            await self._session.execute(_INSERT_REST, rest)
        return row

    async def load(self, stream_id: int, at_version: int | None = None) -> StreamState[S] | None:
        """Return the state at `at_version`, or the newest; None if the stream is shorter.

        Raises UnknownEvent and BrokenStream.
        """
        keys = {
            "category": self._category.name,
            "stream_id": stream_id,
            "state_version": self._category.snapshot_version,
            "at_version": _NEWEST if at_version is None else at_version,
        }
        with self._span("load", stream_id):
            found = await self._session.execute(_LOAD, keys)
            loaded = _fold(self._category, stream_id, found)
        return None if loaded is None or loaded.version < (at_version or 0) else loaded

    async def load_many(self, stream_ids: Sequence[int]) -> list[StreamState[S]]:
        """Fold the streams from their first event, without snapshots; by ascending id.

        Raises UnknownEvent and BrokenStream.
        """
        keys = {"category": self._category.name, "ids": [*stream_ids]}
        rows = await self._session.execute(_LOAD_MANY, keys)
        by_stream = groupby(rows, key=itemgetter(0))
        found = [_fold(self._category, id, (row[1:] for row in rows)) for id, rows in by_stream]
        return [loaded for loaded in found if loaded is not None]

    async def save_snapshot(self, stream_id: int, loaded: StreamState[S]) -> None:
        """Store a snapshot, unless there is a newer one."""
        await self._session.execute(
            _SNAPSHOT,
            {
                "category": self._category.name,
                "stream_id": stream_id,
                "version": loaded.version,
                "state_version": self._category.snapshot_version,
                "state": self._category.state_adapter.dump_json(loaded.state).decode(),
                "began_at": loaded.began_at,
                "changed_at": loaded.changed_at,
            },
        )

    async def version_at(self, stream_id: int, moment: datetime) -> int:
        """Return the version of the stream at `moment`; NO_STREAM before its first event."""
        query = select(func.max(EventRow.version)).where(
            EventRow.category == self._category.name,
            EventRow.stream_id == stream_id,
            EventRow.recorded_at <= moment,
        )
        return await self._session.scalar(query) or NO_STREAM

    async def events(
        self, stream_id: int, after: int = 0, limit: int | None = None
    ) -> list[StoredEvent[E]]:
        """Return the events of a stream above the version `after`, in order."""
        query = (
            select(*COLUMNS)
            .where(
                EventRow.category == self._category.name,
                EventRow.stream_id == stream_id,
                EventRow.version > after,
            )
            .order_by(EventRow.version)
            .limit(limit)
        )
        rows = await self._session.execute(query)
        return [stored_event(self._category, tuple(row)) for row in rows]

    async def find(self, event_id: UUID) -> tuple[int, int] | None:
        """Return the stream and the version of an event, or None."""
        query = select(EventRow.stream_id, EventRow.version).where(
            EventRow.category == self._category.name, EventRow.event_id == event_id
        )
        row = (await self._session.execute(query)).one_or_none()
        return None if row is None else (row.stream_id, row.version)

    async def count(self) -> int:
        """Count the streams."""
        query = select(func.count()).where(
            EventRow.category == self._category.name, EventRow.version == 1
        )
        return await self._session.scalar(query) or 0

    async def streams(self, after: int, limit: int) -> list[int]:
        """Return the ids of the next streams above `after`, ascending."""
        query = (
            select(EventRow.stream_id)
            .where(
                EventRow.category == self._category.name,
                EventRow.stream_id > after,
                EventRow.version == 1,
            )
            .order_by(EventRow.stream_id)
            .limit(limit)
        )
        return [*await self._session.scalars(query)]

    async def erase(self, stream_id: int) -> int:
        """Delete a stream for good, where the law requires it; return the number of its events.

        The trigger allows a deletion only if the transaction has declared it, as this one does.
        """
        await self._session.execute(text("SET LOCAL event_store.erasing = 'on'"))
        key = {"category": self._category.name, "stream_id": stream_id}
        await self._session.execute(text(f"DELETE FROM event_snapshots WHERE {_OF_STREAM}"), key)
        gone = await self._session.scalars(
            text(f"DELETE FROM events WHERE {_OF_STREAM} RETURNING version"), key
        )
        count = len(gone.all())
        await self._session.execute(text("SET LOCAL event_store.erasing = 'off'"))
        return count

    def _span(self, operation: str, stream_id: int) -> AbstractContextManager[object]:
        return tracing.span(
            f"{operation} {self._category.name}",
            attributes=lambda: {"app.event_store.stream_id": stream_id},
        )

    def _parameters(self, stream_id: int, expected: int, new: NewEvent[E]) -> dict[str, Any]:
        event_type = self._category.type_of(new.event)
        return {
            "category": self._category.name,
            "stream_id": stream_id,
            "expected": expected,
            "event_id": new.event_id,
            "type": event_type.name,
            "data_version": event_type.version,
            "data": event_type.adapter.dump_json(new.event).decode(),
            "metadata": json.dumps(new.metadata),
            "recorded_at": new.recorded_at,
            "lock_kind": WRITERS_LOCK,
            "lock": self._category.lock,
        }


def _fold(
    category: Category[E, S], stream_id: int, rows: Iterable[Sequence[Any]]
) -> StreamState[S] | None:
    """Fold rows of _LOAD to a state. A row without a type is a snapshot."""
    state: S | None = None
    known, began_at, changed_at = 0, None, None
    for version, name, data_version, data, began, recorded_at in rows:
        if name is None:
            state = category.state_adapter.validate_json(data)
        elif version != known + 1:
            raise BrokenStream(f"{category.name} {stream_id} has no event {known + 1}")
        else:
            state = category.evolve(state, category.read(name, data_version, data))
        known, began_at, changed_at = version, began_at or began, recorded_at
    if state is None or began_at is None or changed_at is None:
        return None
    return StreamState(state, known, began_at, changed_at)


def stored_event(category: Category[E, S], row: tuple[Any, ...]) -> StoredEvent[E]:
    position, stream_id, version, event_id, name, data_version, data, metadata, at = row
    event = category.read(name, data_version, json.dumps(data))
    return StoredEvent(
        position, stream_id, version, event_id, name, data_version, event, metadata, at
    )
