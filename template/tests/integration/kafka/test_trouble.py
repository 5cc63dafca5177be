"""A consumer in trouble: overload, a database that is away, a slow handler, a stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.kafka import consumer as consumer_module
from app.kafka.consumer import Consumer
from app.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription
from app.unit_of_work import UnitOfWork
from tests.eventually import eventually
from tests.integration.kafka.conftest import (
    Counted,
    World,
    counted,
    in_order_by_key,
    record_effect,
)

ONCE = RetryPolicy(attempts=1)
TOUCHY = OverloadPolicy(window=5, threshold=0.6, probe_initial=0.2, probe_maximum=0.4, probes=50)


class Dependency:
    """Something that a handler needs, and that can be down."""

    def __init__(self) -> None:
        self.up = True
        self.calls = 0

    async def handle(self, event: Counted, uow: UnitOfWork) -> None:
        self.calls += 1
        if not self.up:
            raise RuntimeError("the dependency is down")
        await record_effect(event, uow)


async def test_an_overloaded_subscription_pauses_says_so_and_recovers(world: World) -> None:
    dependency = Dependency()
    subscription = Subscription(
        "touchy", {Counted: dependency.handle}, retry=ONCE, overload=TOUCHY, concurrency=2
    )
    dependency.up = False
    async with world.running(subscription) as (consumer,):
        await world.send(*counted(100))
        await eventually(lambda: asyncio.sleep(0, consumer.status.overload is not None))
        ready = await world.health.ready()
        assert "touchy" in str(ready.checks)
        assert "down" in ready.checks["consumer touchy"]
        paused = {"consumer": "touchy", "reason": "overload"}
        assert REGISTRY.get_sample_value("kafka_consumer_paused", paused) == 1
        calls = dependency.calls
        await asyncio.sleep(1.0)
        assert dependency.calls - calls <= 10  # probes, not the whole topic
        dependency.up = True
        await eventually(lambda: asyncio.sleep(0, consumer.status.overload is None))
        lost = len(await world.records(f"{world.topic}.touchy.dlq"))
        effects = await world.has_effects(100 - lost)
        assert REGISTRY.get_sample_value("kafka_consumer_paused", paused) == 0
    assert lost <= 5
    assert in_order_by_key(effects)


async def test_undecodable_messages_count_among_the_good_ones_of_their_batch(world: World) -> None:
    patient = OverloadPolicy(window=10, threshold=0.6, probe_initial=60, probe_maximum=60)
    subscription = Subscription("mixed", {Counted: record_effect}, overload=patient)
    await world.create_topics(subscription)
    events = counted(120)
    for number, event in enumerate(events):
        await world.send(event)
        if number % 4 == 0:
            await world.send_bytes(b"poison", event.key.encode())
    async with world.running(subscription):
        await world.has_effects(len(events))
        await world.dead_letters("mixed", 30)  # one wait for a probe would outlast this test


async def test_a_database_that_is_away_costs_no_attempt_and_no_message(world: World) -> None:
    subscription = Subscription("patient", {Counted: record_effect}, retry=ONCE)
    events = counted(10)
    async with world.running(subscription) as (consumer,):
        await world.send(*events[:5])
        await world.has_effects(5)
        async with connections_refused(world):
            await world.send(*events[5:])
            await eventually(lambda: asyncio.sleep(0, consumer.status.trouble is not None))
            assert (await world.health.ready()).status == "unavailable"
            assert (await world.health.live()).status == "ok"
        effects = await world.has_effects(10)
        assert await world.records(f"{world.topic}.patient.dlq") == []
        await eventually(lambda: asyncio.sleep(0, consumer.status.trouble is None))
    assert in_order_by_key(effects)


@asynccontextmanager
async def connections_refused(world: World) -> AsyncIterator[None]:
    """The server takes no connection to the test's database, and has cut those that there were."""
    url = world.database.engine.url
    server = create_async_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    name = url.database
    try:
        async with server.connect() as connection:
            await connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            await connection.execute(text(cut), {"name": name})
            try:
                yield
            finally:
                await connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    finally:
        await server.dispose()


async def test_a_slow_handler_keeps_its_membership(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(event: Counted, uow: UnitOfWork) -> None:
        await asyncio.sleep(2.5)
        await record_effect(event, uow)

    impatient = {"max_poll_interval_ms": 1000, "heartbeat_interval_ms": 200}
    options = Consumer._client_options
    monkeypatch.setattr(Consumer, "_client_options", lambda self: {**options(self), **impatient})
    monkeypatch.setattr(consumer_module, "KEEP_ALIVE_SECONDS", 0.3)
    async with world.running(Subscription("slow", {Counted: slow})) as (consumer,):
        assignments = consumer._assignments
        await world.send(*counted(1))
        await world.has_effects(1)
        await eventually(lambda: world.committed("slow"), lambda offset: offset == 1)
        assert consumer._assignments == assignments
    assert await world.effects() == [("key-0", 0)]


async def test_a_stop_finishes_what_is_in_flight_and_leaves_the_rest(world: World) -> None:
    started = asyncio.Event()

    async def steady(event: Counted, uow: UnitOfWork) -> None:
        started.set()
        await asyncio.sleep(0.02)
        await record_effect(event, uow)

    subscription = Subscription("steady", {Counted: steady}, batch_size=10)
    await world.create_topics(subscription)
    await world.send(*counted(100))
    async with world.running(subscription):
        await started.wait()
    done = len(await world.effects())
    assert 0 < done < 100
    assert await world.committed("steady") == done
    async with world.running(subscription):
        effects = await world.has_effects(100)
    assert len(effects) == 100
    assert in_order_by_key(effects)


async def test_a_stop_rolls_back_what_outlasts_the_drain_deadline(world: World) -> None:
    started = asyncio.Event()

    async def stuck(event: Counted, uow: UnitOfWork) -> None:
        await record_effect(event, uow)
        started.set()
        await asyncio.sleep(60)

    world.settings.kafka_drain_timeout_seconds = 0.5
    async with world.running(Subscription("stuck", {Counted: stuck})):
        await world.send(*counted(1))
        await started.wait()
    assert await world.effects() == []
    assert await world.committed("stuck") == 0
