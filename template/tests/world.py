"""The service in parts, on real servers: a small world for consumers, and the HTTP API alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text
from typer.testing import CliRunner, Result

from app import wiring
from app.platform.cli import command_line
from app.platform.config import HttpSettings, Settings
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import BaseEvent, EventRegistry, EventType
from app.platform.health import Health
from app.platform.http import versions
from app.platform.http.app import create_app
from app.platform.kafka import admin, consumer
from app.platform.kafka.admin import provision, read_to_end, reading
from app.platform.kafka.codec import Message, encode
from app.platform.kafka.consumer import Consumer
from app.platform.kafka.consumers import consuming
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics
from app.platform.runtime import Configuration
from app.platform.service import Role, Service
from app.platform.tracing import Trace
from tests.fixtures import database_settings, eventually, settings_for


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

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        pass


@dataclass
class World:
    """The means of a test to run consumers, to send to them, and to look at the result."""

    settings: KafkaSettings
    database: Database
    producer: KafkaProducer
    registry: EventRegistry
    health: Health = field(default_factory=Health)

    @property
    def topic(self) -> str:
        return self.registry.topic(Counted)

    @property
    def units(self) -> UnitOfWorkFactory:
        return UnitOfWorkFactory(self.database.sessions, lambda _session: NoPublisher())

    async def create_topics(self, *subscriptions: Subscription) -> None:
        await provision(self.settings, required_topics(self.settings, self.registry, subscriptions))

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
        """The records in `topic` now."""
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

    from app.platform.kafka.settings import client_options

    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        # By name: the mock broker has no answer to a request for all partitions of a group.
        (described,) = await admin.describe_topics([topic])
        partitions = [TopicPartition(topic, p["partition"]) for p in described["partitions"]]
        offsets = await admin.list_consumer_group_offsets(group, partitions=partitions)
    finally:
        await admin.close()
    return sum(entry.offset for entry in offsets.values() if entry.offset > 0)


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


@pytest.fixture(scope="session", autouse=True)
def short_waits() -> Iterator[None]:
    """A consumer that stops ends its last fetch first, and so does a reader at a topic's end.

    A request for a version that does not come waits, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer, "FETCH_WAIT_SECONDS", 0.05)
        patch.setattr(admin, "POLL_SECONDS", 0.05)
        patch.setattr(versions, "WAIT_SECONDS", 0.5)
        yield


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


async def run_cli(*arguments: str, service: Service | None = None, input: str = "") -> Result:
    """The result of `app …` in this process, for the service as it is wired or another one."""
    cli = command_line(lambda: service or wiring.service)
    # A thread, because a command has an event loop of its own.
    invoke = partial(CliRunner().invoke, cli, arguments, input, catch_exceptions=False)
    return await asyncio.to_thread(invoke)


@dataclass
class Api:
    http: AsyncClient
    producer: FakeProducer

    def published(self, event_type: str) -> list[dict[str, Any]]:
        return [
            json.loads(message.value or b"") for message in self.producer.on(f"api.{event_type}")
        ]


@asynccontextmanager
async def serving(database_url: str) -> AsyncIterator[Api]:
    producer = FakeProducer()
    configuration = Configuration(
        Settings(service_name="api", _env_file=None),
        settings_for("127.0.0.1:9", "api"),  # nobody talks to it: the producer is a fake
        database_settings(database_url),
        HttpSettings(_env_file=None),
    )
    # Sent before the answer comes, whatever the service publishes through: so one can look.
    service = Service(replace(part, publishing=None) for part in wiring.service.components)
    app = create_app(service, {Role.API}, configuration, producer)
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://api") as http,
    ):
        yield Api(http, producer)


@pytest.fixture
async def api(database: Database, migrated_database_url: str) -> AsyncIterator[Api]:
    async with serving(migrated_database_url) as api:
        yield api


@asynccontextmanager
async def _failing(
    database: Database, table: str, sqlstate: str, timing: str
) -> AsyncIterator[None]:
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" RAISE EXCEPTION 'a secret of the database' USING ERRCODE = '{sqlstate}'; END $$"
            )
        )
        await connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {table}"
                f" DEFERRABLE INITIALLY {timing} FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    try:
        yield
    finally:
        async with database.engine.begin() as connection:
            await connection.execute(text("DROP FUNCTION refuse CASCADE"))


def failing_commit(
    database: Database, table: str, sqlstate: str
) -> AbstractAsyncContextManager[None]:
    """Transactions that insert into `table` fail when they commit."""
    return _failing(database, table, sqlstate, "DEFERRED")


def failing_insert(
    database: Database, table: str, sqlstate: str
) -> AbstractAsyncContextManager[None]:
    """Inserting into `table` fails."""
    return _failing(database, table, sqlstate, "IMMEDIATE")


@asynccontextmanager
async def missing_table(database: Database, table: str) -> AsyncIterator[None]:
    """There is no `table`, as before the migration that makes it."""
    async with database.engine.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_to_come"))
    try:
        yield
    finally:
        async with database.engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {table}_to_come RENAME TO {table}"))
