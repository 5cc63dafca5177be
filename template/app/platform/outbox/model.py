"""Buckets: what one relay takes at a time, so that any number of relays keep the order by key.

A bucket's number tells how many buckets there were when its rows were written: 320005 is bucket 5
of 32. Rows of the old and of the new division are thus told apart after OUTBOX_BUCKETS has changed.
"""

import json
from datetime import datetime
from functools import lru_cache
from zlib import crc32

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.kafka import codec as names
from app.platform.kafka.codec import Header, Message

_DIVISION = 10_000

OrderKey = tuple[str, bytes]


def order_key(topic: str, key: bytes) -> OrderKey:
    """The unit of order: the events of one entity, whichever of its topics they go to."""
    return topic.rpartition(".")[0], key


def bucket_of(topic: str, key: bytes, buckets: int) -> int:
    """The bucket of a message where there are `buckets`."""
    entity, key = order_key(topic, key)
    return buckets * _DIVISION + crc32(entity.encode() + b"\0" + key) % buckets


def division_of(bucket: int) -> int:
    """Return how many buckets there were when rows of `bucket` were written."""
    return bucket // _DIVISION


def bounds_of(bucket: int) -> tuple[int, int]:
    """The first number of the bucket's division, and the first after it."""
    first = division_of(bucket) * _DIVISION
    return first, first + _DIVISION


# What tells messages apart, and what many of them have in common.
_OWN = {
    names.CE_ID: "ce_id",
    names.CE_TIME: "ce_time",
    names.CORRELATION_ID: "correlation_id",
    names.CAUSATION_ID: "causation_id",
    names.TRACEPARENT: "traceparent",
}
_SHARED = {names.CE_TYPE: "ce_type", names.CE_SOURCE: "ce_source"}
HEADER_COLUMNS = {**_OWN, **_SHARED}


class MessageColumns:
    """A message as a row."""

    bucket: Mapped[int] = mapped_column(Integer)
    topic: Mapped[str] = mapped_column(String(249))
    key: Mapped[bytes] = mapped_column(LargeBinary)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    ce_id: Mapped[str | None] = mapped_column(Text)
    ce_type: Mapped[str | None] = mapped_column(Text)
    ce_source: Mapped[str | None] = mapped_column(Text)
    ce_time: Mapped[str | None] = mapped_column(Text)
    correlation_id: Mapped[str | None] = mapped_column(Text)
    causation_id: Mapped[str | None] = mapped_column(Text)
    traceparent: Mapped[str | None] = mapped_column(Text)
    headers: Mapped[dict[str, str]] = mapped_column(JSONB, server_default="{}")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class OutboxRow(MessageColumns, Base):
    """An event on its way. The ids of a key's events ascend as the transactions that wrote them,
    because those wait for each other; the ids of different keys tell nothing."""

    __tablename__ = "outbox"
    __table_args__ = (Index(None, "bucket", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)


class ParkedRow(MessageColumns, Base):
    """An event that could not be sent, or (`held`) one that waits behind such a one."""

    __tablename__ = "outbox_parked"
    # Keys of any length: a B-tree takes no more than 2,700 bytes, and parking would fail.
    __table_args__ = (Index(None, "key", postgresql_using="hash"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    held: Mapped[bool] = mapped_column(Boolean)
    reason: Mapped[str] = mapped_column(Text)
    parked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class OutboxBucket(Base):
    """A bucket's lock: the relay that has the row locked sends the bucket's rows."""

    __tablename__ = "outbox_buckets"

    bucket: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


def as_row(message: Message, bucket: int) -> dict[str, object]:
    """The values of the columns that hold `message`."""
    columns: dict[str, str | None] = dict.fromkeys(HEADER_COLUMNS.values())
    others: dict[str, str] = {}
    for name, value in message.headers:
        text = (value or b"").decode()
        if (column := HEADER_COLUMNS.get(name)) is None:
            others[name] = text
        else:
            columns[column] = text
    return {
        "bucket": bucket,
        "topic": message.topic,
        "key": message.key or b"",
        "value": message.value or b"",
        "headers": others,
        **columns,
    }


def as_message(
    topic: str, key: bytes, value: bytes, others: str, columns: tuple[str | None, ...]
) -> Message:
    """The message that was made a row; `columns` are those of HEADER_COLUMNS, in that order."""
    *own, ce_type, ce_source = columns
    headers = [
        (name, text.encode()) for name, text in zip(_OWN, own, strict=True) if text is not None
    ]
    return Message(topic, key, value, (*_shared(ce_type, ce_source, others), *headers))


# Made once for all messages of a type: a relay reads thousands a second.
@lru_cache(maxsize=1024)
def _shared(ce_type: str | None, ce_source: str | None, others: str) -> tuple[Header, ...]:
    headers = {names.CE_TYPE: ce_type, names.CE_SOURCE: ce_source, **json.loads(others)}
    return tuple((name, text.encode()) for name, text in headers.items() if text is not None)
