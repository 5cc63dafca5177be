"""The tables of heartbeats and of their counts, and the queries on them."""

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, DateTime, Identity, String, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base


class Heartbeat(Base):
    """A sign of life."""

    __tablename__ = "heartbeats"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str] = mapped_column(String(64))
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class HeartbeatCount(Base):
    """The number of consumed heartbeats of a source, made from events only."""

    __tablename__ = "heartbeat_counts"

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    heartbeats: Mapped[int] = mapped_column(BigInteger)


class HeartbeatRepeated(Exception):
    """This command was carried out before. `heartbeat` is what came of it then."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__(f"the command that sent heartbeat {heartbeat.id} came twice")
        self.heartbeat = heartbeat


class HeartbeatRepository:
    """Keeps heartbeats as rows. It is the seam: an event store can take its place."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, source: str) -> Heartbeat:
        """Raises HeartbeatRepeated where commands are remembered and this one is not new."""
        heartbeat = Heartbeat(source=source)
        self._session.add(heartbeat)
        await self._session.flush()
        return heartbeat


BindHeartbeats = Callable[[AsyncSession], HeartbeatRepository]


class HeartbeatCountRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def of(self, source: str) -> int:
        query = select(HeartbeatCount.heartbeats).where(HeartbeatCount.source == source)
        return await self._session.scalar(query) or 0

    async def add(self, heartbeats: Mapping[str, int]) -> None:
        """Add to the count of each source. Rows are locked in the order of their sources."""
        if not heartbeats:
            return
        sources, numbers = zip(*sorted(heartbeats.items()), strict=True)
        # As two arrays: a statement has at most 32,767 arguments.
        rows = select(
            func.unnest(literal(sources, ARRAY(String))),
            func.unnest(literal(numbers, ARRAY(BigInteger))),
        )
        new = insert(HeartbeatCount).from_select(["source", "heartbeats"], rows)
        total = HeartbeatCount.heartbeats + new.excluded.heartbeats
        await self._session.execute(
            new.on_conflict_do_update(
                index_elements=[HeartbeatCount.source], set_={"heartbeats": total}
            )
        )
