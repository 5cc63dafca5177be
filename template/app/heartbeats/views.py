"""The read model `sources`: when each source was last heard of, and which are silent."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Index, String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.repository import Heartbeat
from app.platform.database.engine import Base
from app.platform.database.upserts import Row
from app.platform.projections.projection import Projection, projector, write_rows
from app.platform.projections.rebuild import AnyProjection, Rebuildable, TableSource


class SourceRow(Base):
    """A source, with its newest heartbeat."""

    __tablename__ = "sources"
    __table_args__ = (Index(None, "sent_at"),)  # for those that are silent

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    heartbeat_id: Mapped[int] = mapped_column(BigInteger)
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def _row(heartbeat: Heartbeat) -> Row:
    return {"source": heartbeat.source, "heartbeat_id": heartbeat.id, "sent_at": heartbeat.sent_at}


def _heartbeat(event: HeartbeatSent) -> Heartbeat:
    return Heartbeat(id=event.heartbeat_id, source=event.source, sent_at=event.timestamp)


SOURCES = Projection("sources", [SourceRow], write_rows(_row, version="heartbeat_id"))

SUBSCRIPTIONS = [
    projector(SOURCES, [HeartbeatSent], _heartbeat),
]

PROJECTIONS: list[AnyProjection] = [
    Rebuildable(SOURCES, TableSource(Heartbeat.id, lambda heartbeat: heartbeat)),
]


async def find_source(sessions: async_sessionmaker[AsyncSession], source: str) -> SourceRow | None:
    async with sessions() as session:
        return await session.get(SourceRow, source)


async def silent_sources(
    session: AsyncSession, since: datetime | None, limit: int
) -> Sequence[SourceRow]:
    """Return up to `limit` sources not heard of `since` then, the longest silent first."""
    query = select(SourceRow).order_by(SourceRow.sent_at).limit(limit)
    if since is not None:
        query = query.where(SourceRow.sent_at < since)
    return (await session.scalars(query)).all()
