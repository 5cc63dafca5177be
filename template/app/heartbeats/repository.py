"""The tables of heartbeats and of their counts, and the queries on them."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, String, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.database.upserts import add_to_totals


class Heartbeat(Base):
    """A sign of life."""

    __tablename__ = "heartbeats"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str] = mapped_column(String(64))
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class HeartbeatCount(Base):
    """The number of heartbeats of a source that were consumed."""

    __tablename__ = "heartbeat_counts"

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    heartbeats: Mapped[int] = mapped_column(BigInteger)


class HeartbeatRepository:
    """Stores heartbeats as rows."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, source: str) -> Heartbeat:
        """Store a new heartbeat. Raises DuplicateCommand if the command was executed before."""
        heartbeat = Heartbeat(source=source)
        self._session.add(heartbeat)
        await self._session.flush()
        return heartbeat


class HeartbeatCountRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, source: str) -> int:
        found = await self._session.get(HeartbeatCount, source)
        return 0 if found is None else found.heartbeats

    async def add(self, heartbeats: Mapping[str, int]) -> None:
        """Add to the count of each source."""
        count = HeartbeatCount.heartbeats
        await add_to_totals(self._session, HeartbeatCount.source, count, heartbeats)
