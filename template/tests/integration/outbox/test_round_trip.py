"""Request, outbox, Kafka, inbox, and what a handler publishes in turn: effects exactly once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from app.database import Database
from app.health import Health
from app.kafka.admin import provision
from app.kafka.consumer import consuming
from app.kafka.event import EventRegistry, EventType
from app.kafka.producer import KafkaProducer
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import RetryPolicy, Subscription
from app.kafka.topics import wanted
from app.unit_of_work import UnitOfWork
from tests.eventually import eventually
from tests.integration.outbox.conftest import (
    Moved,
    Sold,
    World,
    in_order_by_key,
    moved,
    outbox_settings,
)

FAST = RetryPolicy(attempts=3, initial=0.01, maximum=0.02)
EVENTS = 200


@pytest.fixture
async def service(
    database: Database, kafka_settings: KafkaSettings, producer: KafkaProducer
) -> AsyncIterator[World]:
    """A world on a real broker, with a table of effects."""
    registry = EventRegistry(kafka_settings.kafka_client_id, [EventType(Moved), EventType(Sold)])
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE TABLE effects (id bigserial primary key, what text, name text, number int)"
            )
        )
    yield World(database, settings=outbox_settings(outbox_batch_rows=20), registry=registry)
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE effects"))


async def effect(what: str, event: Moved | Sold, uow: UnitOfWork) -> None:
    await uow.session.execute(
        text("INSERT INTO effects (what, name, number) VALUES (:what, :name, :number)"),
        {"what": what, "name": event.name, "number": event.number},
    )


class Selling:
    """Writes, publishes in turn, and then fails, the first time it sees every tenth event."""

    def __init__(self) -> None:
        self.failed: set[int] = set()

    async def __call__(self, event: Moved, uow: UnitOfWork) -> None:
        await effect("moved", event, uow)
        await uow.events.publish(Sold(name=event.name, number=event.number))
        if event.number % 10 == 0 and event.number not in self.failed:
            self.failed.add(event.number)
            raise RuntimeError("after publishing")


async def note_sale(event: Sold, uow: UnitOfWork) -> None:
    await effect("sold", event, uow)


async def test_what_handlers_write_and_publish_is_there_exactly_once(
    service: World, kafka_settings: KafkaSettings, producer: KafkaProducer
) -> None:
    selling = Selling()
    subscriptions = [
        Subscription("seller", {Moved: selling}, retry=FAST),
        Subscription("books", {Sold: note_sale}),
    ]
    topics = wanted(kafka_settings, service.registry, subscriptions)
    await provision(kafka_settings, topics)

    async def effects(what: str) -> list[tuple[str, int]]:
        query = text("SELECT name, number FROM effects WHERE what = :what ORDER BY id")
        async with service.database.engine.connect() as connection:
            return [(r.name, r.number) for r in await connection.execute(query, {"what": what})]

    async with consuming(
        subscriptions, service.registry, kafka_settings, service.units, producer, Health()
    ):
        async with service.relaying(2, producer):
            events = moved(EVENTS)
            for start in range(0, EVENTS // 2, 10):
                await service.write(*events[start : start + 10])
        # Those two are gone, in the middle of it; another one takes over.
        for start in range(EVENTS // 2, EVENTS, 10):
            await service.write(*events[start : start + 10])
        async with service.relaying(1, producer):
            await eventually(lambda: effects("sold"), lambda rows: len(rows) >= EVENTS, 30)
            await service.is_empty()
            await asyncio.sleep(0.2)
    for what in ("moved", "sold"):
        found = await effects(what)
        assert len(found) == EVENTS, what
        assert in_order_by_key(found), what
    assert len(selling.failed) == EVENTS // 10
