"""A small world for consumer tests: two event types, a table of effects, consumers at will."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from aiokafka import ConsumerRecord
from sqlalchemy import text

from app.database import Database
from app.health import Health
from app.kafka.admin import provision, read_to_end, reading
from app.kafka.codec import Message, encode
from app.kafka.consumer import Consumer, consuming
from app.kafka.event import BaseEvent, EventRegistry, EventType
from app.kafka.producer import KafkaProducer
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.kafka.topics import wanted
from app.tracing import Trace
from app.unit_of_work import UnitOfWork, UnitsOfWork
from tests.eventually import eventually


class Counted(BaseEvent):
    """An event whose effect is one row: applied twice, it would show."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.counted"] = "thing.counted"
    name: str
    number: int


async def record_effect(event: Counted, uow: UnitOfWork) -> None:
    await uow.session.execute(
        text("INSERT INTO effects (name, number) VALUES (:name, :number)"),
        {"name": event.name, "number": event.number},
    )


class NoPublisher:
    """For handlers that publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(f"nothing should be published, but {event!r} was")

    async def committed(self) -> None:
        pass


@dataclass
class World:
    """What a test holds: the means to run consumers, to send to them, and to look at the result."""

    settings: KafkaSettings
    database: Database
    producer: KafkaProducer
    registry: EventRegistry
    health: Health = field(default_factory=Health)

    @property
    def topic(self) -> str:
        return self.registry.topic(Counted)

    @property
    def units(self) -> UnitsOfWork:
        return UnitsOfWork(self.database.sessions, lambda _session: NoPublisher())

    async def create_topics(self, *subscriptions: Subscription) -> None:
        await provision(self.settings, wanted(self.settings, self.registry, subscriptions))

    @asynccontextmanager
    async def running(self, *subscriptions: Subscription) -> AsyncIterator[list[Consumer]]:
        """Consumers of `subscriptions`, with their partitions assigned."""
        await self.create_topics(*subscriptions)
        async with consuming(
            subscriptions, self.registry, self.settings, self.units, self.producer, self.health
        ) as consumers:
            await eventually(
                lambda: asyncio.sleep(0, all(c.status.assigned for c in consumers)), seconds=30
            )
            yield consumers

    async def send(self, *events: Counted) -> None:
        outcomes = await self.producer.send_all([self.message(event) for event in events])
        assert outcomes == [None] * len(events)

    def message(self, event: Counted) -> Message:
        return encode(event, self.registry, Trace("story"))

    async def send_bytes(self, value: bytes | None, key: bytes | None = b"k") -> None:
        await self.producer.send(Message(self.topic, key, value))

    async def effects(self) -> list[tuple[str, int]]:
        """All effects, in the order in which they were applied."""
        async with self.database.engine.connect() as connection:
            rows = await connection.execute(text("SELECT name, number FROM effects ORDER BY id"))
            return [(row.name, row.number) for row in rows]

    async def has_effects(self, count: int, seconds: float = 15.0) -> list[tuple[str, int]]:
        return await eventually(self.effects, lambda rows: len(rows) >= count, seconds)

    async def records(self, topic: str) -> list[ConsumerRecord]:
        """What `topic` holds now."""
        async with reading(self.settings, [topic]) as client:
            return [record async for record in read_to_end(client)]

    async def dead_letters(self, consumer: str, count: int) -> list[ConsumerRecord]:
        """The dead letters of `consumer`, once there are `count`."""
        topic = f"{self.topic}.{consumer}.dlq"
        return await eventually(lambda: self.records(topic), lambda found: len(found) >= count)

    async def committed(self, consumer: str) -> int:
        """The sum of the offsets that the consumer's group has committed on the event's topic."""
        group = f"{self.settings.kafka_group_id}.{consumer}"
        return await committed_offsets(self.settings, group, self.topic)


async def committed_offsets(settings: KafkaSettings, group: str, topic: str) -> int:
    from aiokafka.admin import AIOKafkaAdminClient

    from app.kafka.settings import client_options

    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return sum(o.offset for tp, o in offsets.items() if tp.topic == topic and o.offset > 0)


def counted(count: int, keys: int = 5) -> list[Counted]:
    """Events numbered from 0 over `keys` keys."""
    return [Counted(name=f"key-{n % keys}", number=n) for n in range(count)]


def failing(times: int, error: Exception) -> Callable[[Counted, UnitOfWork], Awaitable[None]]:
    """A handler that leaves its effect and then fails, `times` times for each event."""
    left: dict[object, int] = {}

    async def handle(event: Counted, uow: UnitOfWork) -> None:
        await record_effect(event, uow)
        left.setdefault(event.event_id, times)
        if left[event.event_id] > 0:
            left[event.event_id] -= 1
            raise error

    return handle


def in_order_by_key(effects: Sequence[tuple[str, int]]) -> bool:
    last: dict[str, int] = {}
    for name, number in effects:
        if number <= last.get(name, -1):
            return False
        last[name] = number
    return True


@pytest.fixture
async def world(
    kafka_settings: KafkaSettings, database: Database, producer: KafkaProducer
) -> AsyncIterator[World]:
    async with database.engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE effects (id bigserial primary key, name text, number int)")
        )
    registry = EventRegistry(kafka_settings.kafka_client_id, [EventType(Counted)])
    yield World(kafka_settings, database, producer, registry)
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE effects"))
