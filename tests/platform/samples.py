"""Events, records, a unit of work without a database, and statements on one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal
from uuid import UUID

from aiokafka import ConsumerRecord
from pydantic import Field
from sqlalchemy import text

from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventRegistry, EventType, Payload
from tests.fixtures import database_settings

TOPIC = "shop.meter.read"
NAMED_TOPIC = "shop.meter.named"
EVENT_ID = UUID("6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f")


class MeterRead(BaseEvent):
    """An event with a field of every kind."""

    key_field: ClassVar[str] = "meter_id"

    event_type: Literal["meter.read"] = "meter.read"
    meter_id: str
    count: int
    price: Decimal = Decimal(0)
    level: float = 0.0
    note: str | None = None
    tags: tuple[str, ...] = ()


class MeterNamed(BaseEvent):
    """An event in its third major version."""

    key_field: ClassVar[str] = "meter_id"

    version: str = Field("3.1.0", pattern=VERSION_PATTERN)
    event_type: Literal["meter.named"] = "meter.named"
    meter_id: str
    first: str
    last: str
    title: str


def named_2(payload: Payload) -> Payload:
    first, last = payload["name"].split(" ", 1)
    return {**payload, "version": "2.0.0", "first": first, "last": last}


def named_3(payload: Payload) -> Payload:
    return {**payload, "version": "3.0.0", "title": payload.get("title", "none")}


REGISTRY = EventRegistry(
    "shop", [EventType(MeterRead), EventType(MeterNamed, upcasters={1: named_2, 2: named_3})]
)


def meter_read(meter_id: str = "m-1", count: int = 1, **fields: Any) -> MeterRead:
    return MeterRead(meter_id=meter_id, count=count, **fields)


def record(
    value: bytes | None = b"{}",
    key: bytes | None = b"m-1",
    *,
    topic: str = TOPIC,
    partition: int = 0,
    offset: int = 0,
    timestamp: int = 1_700_000_000_000,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> ConsumerRecord:
    """A record as aiokafka fetches it."""
    return ConsumerRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=timestamp,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=len(key or b""),
        serialized_value_size=len(value or b""),
        headers=tuple(headers),
    )


def body(event: BaseEvent) -> bytes:
    return event.model_dump_json().encode()


def utc(hour: int) -> datetime:
    return datetime(2024, 5, 1, hour, tzinfo=UTC)


class FakeSession:
    """An inbox in memory: what `claim` asks of a session, and what a transaction does to it."""

    def __init__(self, inbox: set[UUID]) -> None:
        self._inbox = inbox
        self._claimed: set[UUID] = set()
        self.effects: list[object] = []

    async def execute(self, _statement: object, parameters: dict[str, Any]) -> "Claimed":
        new = [event_id for event_id in parameters["event_ids"] if event_id not in self._inbox]
        self._claimed |= set(new)
        return Claimed(new, len(new) == len(parameters["event_ids"]))

    def commit(self) -> None:
        self._inbox |= self._claimed


@dataclass
class Claimed:
    """The one row that `claim` gets."""

    new: list[UUID]
    all_new: bool

    def one(self) -> tuple[bool, list[UUID] | None]:
        return self.all_new, None if self.all_new else self.new


class FakeUnits:
    """Units of work whose effects are kept when their block ends, and forgotten when it fails."""

    def __init__(self) -> None:
        self.inbox: set[UUID] = set()
        self.effects: list[object] = []
        self.transactions = 0
        self.failures: list[Exception] = []

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[UnitOfWork]:
        self.transactions += 1
        if self.failures:
            raise self.failures.pop(0)
        session = FakeSession(self.inbox)
        yield UnitOfWork(session, NoPublisher())  # type: ignore[arg-type]  # a fake in its place
        session.commit()
        self.effects += session.effects


class NoPublisher:
    """For handlers that publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(f"nothing should be published, but {event!r} was")


async def execute(url: str, statement: str) -> None:
    database = Database(database_settings(url))
    async with database.engine.begin() as connection:
        await connection.execute(text(statement))
    await database.close()
