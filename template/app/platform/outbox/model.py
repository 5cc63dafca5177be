"""The tables of the outbox. A bucket is the share of the rows that one relay locks at a time, so
that any number of relays keep the order by key.

A bucket's number contains the number of buckets at the time of writing: 320005 is bucket 5 of 32.
So rows written before and after a change of OUTBOX_BUCKETS are never in the same bucket.
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

# A number of a bucket is the count of buckets times this, and the bucket among them.
_COUNT_FACTOR = 10_000

OrderKey = tuple[str, bytes]


def order_key(topic: str, key: bytes) -> OrderKey:
    """Return the unit of order: an entity, whichever of its topics an event goes to.

    Events of topics with other names than `service.entity.action` keep the order of their topic.
    """
    entity = topic.rpartition(".")[0] if topic.count(".") == 2 else topic
    return entity, key


def bucket_of(topic: str, key: bytes, buckets: int) -> int:
    """Return the bucket of a message among `buckets`."""
    entity, key = order_key(topic, key)
    return buckets * _COUNT_FACTOR + crc32(entity.encode() + b"\0" + key) % buckets


def bucket_count_of(bucket: int) -> int:
    """Return the number of buckets at the time when the rows of `bucket` were written."""
    return bucket // _COUNT_FACTOR


def bucket_range(bucket: int) -> tuple[int, int]:
    """Return the bounds of the numbers with the same count: the first, and the first beyond."""
    first = bucket_count_of(bucket) * _COUNT_FACTOR
    return first, first + _COUNT_FACTOR


# The headers of a single message, and those that many messages share.
_OWN = {
    names.CE_ID: "ce_id",
    names.CE_TIME: "ce_time",
    names.CORRELATION_ID: "correlation_id",
    names.CAUSATION_ID: "causation_id",
    names.TRACESTATE: "tracestate",
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
    tracestate: Mapped[str | None] = mapped_column(Text)
    headers: Mapped[dict[str, str]] = mapped_column(JSONB, server_default="{}")
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class OutboxRow(MessageColumns, Base):
    """An event to be sent. The ids of one key ascend in the order of its transactions, because
    these wait for each other; the ids of different keys have no order."""

    __tablename__ = "outbox"
    __table_args__ = (Index(None, "bucket", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)


class ParkedRow(MessageColumns, Base):
    """An event that could not be sent, or one that is blocked by an earlier one of its key."""

    __tablename__ = "outbox_parked"
    # A B-tree takes keys of at most 2,700 bytes: parking a longer one would fail.
    __table_args__ = (Index(None, "key", postgresql_using="hash"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    blocked: Mapped[bool] = mapped_column("held", Boolean)
    reason: Mapped[str] = mapped_column(Text)
    parked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers of the message, those with a column first."""
        own = {name: getattr(self, column) for name, column in HEADER_COLUMNS.items()}
        return {name: value for name, value in own.items() if value is not None} | self.headers


class OutboxBucket(Base):
    """The lock of a bucket: the relay that holds it sends the bucket's rows."""

    __tablename__ = "outbox_buckets"

    bucket: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)


def as_row(message: Message, bucket: int) -> dict[str, object]:
    """Return `message` as values of the table's columns."""
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
    """Return the message of a row; `columns` are those of HEADER_COLUMNS, in that order."""
    *own, ce_type, ce_source = columns
    headers = [
        (name, text.encode()) for name, text in zip(_OWN, own, strict=True) if text is not None
    ]
    return Message(topic, key, value, (*_shared(ce_type, ce_source, others), *headers))


# Built once for all messages of a type: a relay reads thousands a second.
@lru_cache(maxsize=1024)
def _shared(ce_type: str | None, ce_source: str | None, others: str) -> tuple[Header, ...]:
    headers = {names.CE_TYPE: ce_type, names.CE_SOURCE: ce_source, **json.loads(others)}
    return tuple((name, text.encode()) for name, text in headers.items() if text is not None)
