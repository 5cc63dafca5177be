"""The tables of the event store."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Identity,
    Integer,
    String,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base


class EventRow(Base):
    """An event. Versions number the events of a stream, from 1."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("position", name="uq_events_position"),
        UniqueConstraint("event_id", name="uq_events_event_id"),
    )

    category: Mapped[str] = mapped_column(String(50), primary_key=True)
    stream_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, Identity())
    event_id: Mapped[UUID] = mapped_column(Uuid)
    type: Mapped[str] = mapped_column(String(100))
    data_version: Mapped[int] = mapped_column(Integer)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # SQLAlchemy reserves the name `metadata`.
    context: Mapped[dict[str, str]] = mapped_column("metadata", JSONB)
    # Not the start of the transaction: times never decrease within a stream.
    recorded_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )


class SnapshotRow(Base):
    """The state of a stream in a version, from which loading starts. It can be deleted at any time."""

    __tablename__ = "event_snapshots"

    category: Mapped[str] = mapped_column(String(50), primary_key=True)
    stream_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    state_version: Mapped[int] = mapped_column(Integer)
    state: Mapped[dict[str, Any]] = mapped_column(JSONB)
    began_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
