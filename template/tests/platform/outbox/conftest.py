"""Fixtures of the outbox tests: events, a database, a broker or its fake, and any number of relays."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from sqlalchemy import text

from app.platform.background import WakeUp
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import BaseEvent, EventRegistry, EventType
from app.platform.kafka.codec import Message
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import Producer
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.relay import Relay
from app.platform.outbox.settings import OutboxSettings
from tests.fixtures import eventually

MAX_BYTES = 100_000


class Moved(BaseEvent):
    """An event with a number that shows its order."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.moved"] = "thing.moved"
    name: str
    number: int
    load: str = ""


class Sold(BaseEvent):
    """Another event of the same entity, on a topic of its own."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.sold"] = "thing.sold"
    name: str
    number: int


MOVED = "shop.thing.moved"
SOLD = "shop.thing.sold"
TOPICS = [MOVED, SOLD]


def outbox_settings(**values: object) -> OutboxSettings:
    """Return settings with short waits."""
    return OutboxSettings(_env_file=None, **{"outbox_poll_seconds": 0.05, **values})  # type: ignore[arg-type]  # the values are the tests'


@dataclass
class World:
    """The parts of a test: a database, a broker or its fake, and the events written and sent."""

    database: Database
    producer: FakeProducer = field(default_factory=lambda: FakeProducer(TOPICS, MAX_BYTES))
    settings: OutboxSettings = field(default_factory=outbox_settings)
    published: WakeUp = field(default_factory=WakeUp)
    registry: EventRegistry = field(
        default_factory=lambda: EventRegistry("shop", [EventType(Moved), EventType(Sold)])
    )

    @property
    def units(self) -> UnitOfWorkFactory:
        return UnitOfWorkFactory(
            self.database.sessions,
            lambda session: OutboxPublisher(
                session, self.registry, self.settings, MAX_BYTES, self.published
            ),
        )

    async def write(self, *events: BaseEvent) -> None:
        """Publish events in one transaction."""
        async with self.units.begin() as uow:
            for event in events:
                await uow.events.publish(event)

    def relay(self, producer: Producer | None = None, send_timeout: float = 5.0) -> Relay:
        return Relay(
            self.database.engine,
            producer or self.producer,
            self.settings,
            send_timeout,
            self.published,
        )

    @asynccontextmanager
    async def relaying(
        self, count: int = 1, producer: Producer | None = None
    ) -> AsyncIterator[list[Relay]]:
        relays = [self.relay(producer) for _ in range(count)]
        async with AsyncExitStack() as stack:
            for relay in relays:
                await stack.enter_async_context(relay.running(stop_seconds=5))
            yield relays

    async def rows(self, table: str = "outbox") -> list[dict[str, object]]:
        async with self.database.engine.connect() as connection:
            found = await connection.execute(text(f"SELECT * FROM {table} ORDER BY id"))
            return [dict(row) for row in found.mappings()]

    async def is_empty(self, seconds: float = 15.0) -> None:
        await eventually(self.rows, lambda rows: not rows, seconds)

    async def has_parked(self, count: int) -> list[dict[str, object]]:
        return await eventually(lambda: self.rows("outbox_parked"), lambda rows: len(rows) >= count)

    def delivered(self) -> list[tuple[str, int]]:
        return numbers(self.producer.sent)


def numbers(messages: Sequence[Message]) -> list[tuple[str, int]]:
    """Return name and number of each message, without repetitions."""
    events = [
        Moved.model_validate_json((m.value or b"").replace(b"thing.sold", b"thing.moved"))
        for m in messages
    ]
    return list(dict.fromkeys((event.name, event.number) for event in events))


def moved(count: int, keys: int = 5) -> list[Moved]:
    """Return events numbered from 0, spread over `keys` keys."""
    return [Moved(name=f"key-{n % keys}", number=n) for n in range(count)]


def in_order_by_key(found: Sequence[tuple[str, int]]) -> bool:
    last: dict[str, int] = {}
    for name, number in found:
        if number <= last.get(name, -1):
            return False
        last[name] = number
    return True


@pytest.fixture
async def world(database: Database) -> World:
    return World(database)
