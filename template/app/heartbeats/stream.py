"""Sources of heartbeats as streams: the events, and the repository that keeps them.

Every heartbeat is an event of its source's stream. The table `heartbeats` is what is read of them,
written in the transaction of the append; `app event-store verify` compares it with the streams.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Identity,
    Select,
    String,
    UniqueConstraint,
    delete,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from app.heartbeats.repository import Heartbeat, HeartbeatRepeated, HeartbeatRepository
from app.platform.database.engine import Base
from app.platform.errors import InvalidTransition, NotFound, VersionConflict
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.causation import event_id, new_events
from app.platform.event_store.store import NO_STREAM, EventStore, NewEvent, StreamState

# What happens, and what it adds up to. No I/O, no clock, no ids made up.


@dataclass(frozen=True)
class SourceHeard:
    source_id: int
    source: str
    heartbeat_id: int


@dataclass(frozen=True)
class SourceState:
    """The state of a source, folded from its heartbeats."""

    id: int
    source: str
    heartbeats: int
    last_heartbeat_id: int


def evolve(state: SourceState | None, event: SourceHeard) -> SourceState:
    """The source after `event`. Raises InvalidTransition for what cannot have happened."""
    if state is None:
        return SourceState(event.source_id, event.source, 1, event.heartbeat_id)
    if event.source_id != state.id or event.heartbeat_id <= state.last_heartbeat_id:
        raise InvalidTransition(f"{event} cannot follow {state}")
    return replace(state, heartbeats=state.heartbeats + 1, last_heartbeat_id=event.heartbeat_id)


# The names and versions are stored for ever: a class may be renamed, a name may not.
SOURCES: Category[SourceHeard, SourceState] = Category(
    "source", [EventType("source.heard", SourceHeard)], SourceState, evolve
)

# Where they are kept


class SourceStreamRow(Base):
    """The number of a source's stream."""

    __tablename__ = "source_streams"
    __table_args__ = (UniqueConstraint("source"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str] = mapped_column(String(64))


_NEXT_ID = text("SELECT nextval(pg_get_serial_sequence('heartbeats', 'id'))")


class EventSourcedHeartbeats(HeartbeatRepository):
    """Keeps heartbeats as events, and as the rows that are read, in one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session)
        self._store = EventStore(session, SOURCES)
        self._added = 0

    async def add(self, source: str) -> Heartbeat:
        stream_id = await turn(self._session, source)
        before = await self._store.load(stream_id)
        version = NO_STREAM if before is None else before.version
        event = SourceHeard(stream_id, source, int(await self._session.scalar(_NEXT_ID) or 0))
        state = evolve(None if before is None else before.state, event)
        self._added += 1
        new = new_events(SOURCES, f"{source}-{self._added}", [event])
        try:
            appended = await self._store.append(stream_id, new, version)
        except VersionConflict:
            earlier = await self._find_previous_result(new[0].event_id)
            if earlier is None:
                raise
            raise HeartbeatRepeated(earlier) from None
        if SOURCES.snapshot_is_due(version, version + 1):
            loaded = StreamState(state, version + 1, appended.began_at, appended.recorded_at)
            await self._store.save_snapshot(stream_id, loaded)
        heartbeat = _row(event, appended.recorded_at)
        self._session.add(heartbeat)
        await self._session.flush()
        return heartbeat

    async def _find_previous_result(self, id: UUID) -> Heartbeat | None:
        """Return the result of the command when it came first; None when it never did."""
        found = await self._store.find(id)
        if found is None:
            return None
        stream_id, version = found
        (stored,) = await self._store.events(stream_id, after=version - 1, limit=1)
        return _row(stored.event, stored.recorded_at)


async def turn(session: AsyncSession, source: str) -> int:
    """The stream of `source`, which is this transaction's until it ends: heartbeats of one source
    wait for each other, so that none is refused for another one's sake."""
    query = select(SourceStreamRow.id).where(SourceStreamRow.source == source).with_for_update()
    known = await session.scalar(query)
    if known is not None:
        return known
    await session.execute(insert(SourceStreamRow).values(source=source).on_conflict_do_nothing())
    return (await session.execute(query)).scalar_one()


def _row(event: SourceHeard, at: datetime) -> Heartbeat:
    return Heartbeat(id=event.heartbeat_id, source=event.source, sent_at=at)


# For `app event-store`

_Sessions = async_sessionmaker[AsyncSession]


class SourceStreams:
    """Sources as `app event-store` needs them: their views are the rows in `heartbeats`."""

    category = SOURCES
    compared = ("source", "heartbeats", "last_heartbeat_id")

    def summary(self, state: SourceState) -> str:
        return state.source

    async def view(self, sessions: _Sessions, id: int) -> SourceState | None:
        return (await self.views(sessions, id - 1, id)).get(id)

    async def views(
        self, sessions: _Sessions, above: int, up_to: int | None
    ) -> dict[int, SourceState]:
        query = _views().where(SourceStreamRow.id > above)
        if up_to is not None:
            query = query.where(SourceStreamRow.id <= up_to)
        async with sessions() as session:
            return {row[0]: SourceState(*row) for row in await session.execute(query)}

    async def repair(self, session: AsyncSession, loaded: StreamState[SourceState]) -> None:
        """Write the rows of a source anew, whatever they say."""
        state = loaded.state
        await session.execute(delete(Heartbeat).where(Heartbeat.source == state.source))
        stored = await EventStore(session, SOURCES).events(state.id)
        session.add_all(_row(each.event, each.recorded_at) for each in stored)

    async def import_rows(self, session: AsyncSession, limit: int) -> int:
        """Give up to `limit` sources whose heartbeats are rows only their events; how many.

        For a service whose heartbeats are older than its event store. Nothing is published.
        """
        has_stream = exists().where(SourceStreamRow.source == Heartbeat.source)
        query = select(Heartbeat.source).where(~has_stream).distinct().limit(limit)
        sources = (await session.scalars(query)).all()
        for source in sources:
            await _import(session, source)
        return len(sources)


def _views() -> Select[int, str, int, int]:
    """Select the view of each source that has a stream, from the rows of `heartbeats`."""
    return (
        select(
            SourceStreamRow.id,
            SourceStreamRow.source,
            func.count(Heartbeat.id),
            func.max(Heartbeat.id),
        )
        .join(Heartbeat, Heartbeat.source == SourceStreamRow.source)
        .group_by(SourceStreamRow.id)
    )


async def _import(session: AsyncSession, source: str) -> None:
    stream_id = await turn(session, source)
    query = select(Heartbeat).where(Heartbeat.source == source).order_by(Heartbeat.id)
    new = [
        NewEvent(
            event_id(SOURCES.name, row.id, "import"),
            SourceHeard(stream_id, source, row.id),
            {"actor": "import"},
            row.sent_at,
        )
        for row in await session.scalars(query)
    ]
    await EventStore(session, SOURCES).append(stream_id, new, NO_STREAM)


class SourceStore(EventStore[SourceHeard, SourceState]):
    """The streams of sources, by their names."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, SOURCES)

    async def stream_of(self, source: str) -> int:
        """Raises NotFound."""
        query = select(SourceStreamRow.id).where(SourceStreamRow.source == source)
        found = await self._session.scalar(query)
        if found is None:
            raise NotFound("source", source)
        return found
