"""Sources of heartbeats as streams of events. The rows of `heartbeats` are written beside them."""

from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Identity, String, UniqueConstraint, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.heartbeats.repository import Heartbeat, HeartbeatRepository
from app.platform.database.engine import Base
from app.platform.errors import DuplicateCommand, InvalidTransition
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.repository import EventSourcedRepository
from app.platform.event_store.store import NO_STREAM, EventStore, StreamState
from app.platform.event_store.streams import Imported, Sessions, StreamIds, Streams


@dataclass(frozen=True)
class SourceHeard:
    source_id: int
    source: str
    heartbeat_id: int


@dataclass(frozen=True)
class SourceState:
    """The state of a source, folded from its events."""

    id: int
    source: str
    heartbeats: int
    last_heartbeat_id: int


def evolve(state: SourceState | None, event: SourceHeard) -> SourceState:
    """Return the state after `event`. Raises InvalidTransition for an impossible history."""
    if state is None:
        return SourceState(event.source_id, event.source, 1, event.heartbeat_id)
    if event.source_id != state.id or event.heartbeat_id <= state.last_heartbeat_id:
        raise InvalidTransition(f"{event} cannot follow {state}")
    return replace(state, heartbeats=state.heartbeats + 1, last_heartbeat_id=event.heartbeat_id)


# Names and versions of events are stored for ever; classes can be renamed.
SOURCES: Category[SourceHeard, SourceState] = Category(
    "source", [EventType("source.heard", SourceHeard)], SourceState, evolve
)


class SourceStreamRow(Base):
    """The number of a source's stream."""

    __tablename__ = "source_streams"
    __table_args__ = (UniqueConstraint("source"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str] = mapped_column(String(64))


STREAM_IDS = StreamIds(SourceStreamRow.id, SourceStreamRow.source)
_NEXT_ID = text("SELECT nextval(pg_get_serial_sequence('heartbeats', 'id'))")


class EventSourcedHeartbeats(HeartbeatRepository):
    """Stores heartbeats as events, and as the rows that are read, in one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session)
        self._sources = EventSourcedRepository(session, SOURCES)

    async def add(self, source: str) -> Heartbeat:
        stream_id = await STREAM_IDS.lock(self._session, source)
        before = await self._sources.load(stream_id)
        event = SourceHeard(stream_id, source, (await self._session.execute(_NEXT_ID)).scalar_one())
        state = evolve(before.state if before else None, event)
        version = before.version if before else NO_STREAM
        saved = await self._sources.save(stream_id, state, [event], version)
        if saved.duplicate:
            raise DuplicateCommand(_last_heartbeat(saved))
        heartbeat = _last_heartbeat(saved)
        self._session.add(heartbeat)
        await self._session.flush()
        return heartbeat


def _last_heartbeat(source: StreamState[SourceState]) -> Heartbeat:
    state = source.state
    return Heartbeat(id=state.last_heartbeat_id, source=state.source, sent_at=source.changed_at)


async def rewrite(session: AsyncSession, source: StreamState[SourceState]) -> None:
    """Replace the rows of a source by those that its events lead to."""
    name = source.state.source
    await session.execute(delete(Heartbeat).where(Heartbeat.source == name))
    for stored in await EventStore(session, SOURCES).events(source.state.id):
        id, sent_at = stored.event.heartbeat_id, stored.recorded_at
        session.add(Heartbeat(id=id, source=name, sent_at=sent_at))


class SourceStreams(Streams):
    """Sources for `app event-store`. Their views are computed from `heartbeats`."""

    category = SOURCES
    summary = "source"
    compared = ("source", "heartbeats", "last_heartbeat_id")

    async def views(self, sessions: Sessions, above: int, below: int) -> dict[int, SourceState]:
        id, source = SourceStreamRow.id, SourceStreamRow.source
        query = (
            select(id, source, func.count(Heartbeat.id), func.max(Heartbeat.id))
            .join(Heartbeat, Heartbeat.source == source)
            .where(id > above, id < below)
            .group_by(id)
        )
        async with sessions() as session:
            return {row[0]: SourceState(*row) for row in await session.execute(query)}

    async def unimported(self, session: AsyncSession, limit: int) -> list[Imported]:
        known = select(SourceStreamRow.source)
        unknown = select(Heartbeat.source).where(Heartbeat.source.not_in(known)).distinct()
        found: list[Imported] = []
        for source in (await session.scalars(unknown.limit(limit))).all():
            id = await STREAM_IDS.lock(session, source)
            of_source = select(Heartbeat).where(Heartbeat.source == source)
            rows = await session.scalars(of_source.order_by(Heartbeat.id))
            found.append((id, [(SourceHeard(id, source, row.id), row.sent_at) for row in rows]))
        return found
