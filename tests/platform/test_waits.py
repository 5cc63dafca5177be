"""Consumers on a real broker in what takes seconds: delays in turn, and slow handlers."""

import asyncio
from datetime import timedelta

import pytest
from aiokafka import ConsumerRecord

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka import consumer as consumer_module
from app.platform.kafka import lag
from app.platform.kafka.codec import header
from app.platform.kafka.consumer import Consumer
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.subscription import RetryPolicy, Subscription
from tests.fixtures import eventually
from tests.world import Counted, World, counted, failing, record_effect

ONE_SECOND = timedelta(seconds=1)
TWO_SECONDS = timedelta(seconds=2)


def delaying(attempts: int, *delays: timedelta) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, initial=0.01, maximum=0.02, retry_after=list(delays))


async def test_delay_topics_are_read_from_their_start(
    world: World,
) -> None:
    world.settings = world.settings.model_copy(update={"kafka_auto_offset_reset": "latest"})
    subscription = Subscription(
        "counter",
        {Counted: failing(1, RuntimeError("not yet"))},
        retry=delaying(1, timedelta(seconds=3)),
    )
    await world.create_topics(subscription)
    await world.send(Counted(name="old", number=0))

    async def send_and_look() -> list[ConsumerRecord]:
        await world.send(Counted(name="new", number=1))
        return await world.records(f"{world.topic}.counter.retry.3s")

    async with world.running(subscription):  # and stopped before the delay is over
        waiting = await eventually(send_and_look)
    async with world.running(subscription):
        effects = await world.has_effects(len(waiting))
    assert set(effects) == {("new", 1)}


async def test_attempts_and_first_failure_reach_the_dead_letter(
    world: World,
) -> None:
    subscription = Subscription(
        "counter",
        {Counted: failing(99, RuntimeError("for ever"))},
        retry=delaying(2, ONE_SECOND, TWO_SECONDS),
    )
    async with world.running(subscription):
        await world.send(*counted(1))
        (record,) = await world.dead_letters("counter", 1)
        (first_delay,) = await world.records(f"{world.topic}.counter.retry.1s")
    letter = DeadLetter.of(record)
    assert letter.attempts == 4  # two in place, one after each delay
    assert (letter.origin, letter.consumer) == (world.topic, "counter")
    assert letter.first_failed_at is not None
    assert letter.last_failed_at is not None
    assert letter.last_failed_at - letter.first_failed_at >= ONE_SECOND + TWO_SECONDS
    assert header(first_delay.headers, "first-failed-at") == letter.first_failed_at.isoformat()
    assert header(record.headers, "due-at") is None


async def test_a_slow_handler_keeps_its_membership(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(event: Counted, uow: UnitOfWork) -> None:
        await asyncio.sleep(1.5)
        await record_effect(event, uow)

    impatient = {"max_poll_interval_ms": 1000, "heartbeat_interval_ms": 200}
    options = Consumer._client_options
    monkeypatch.setattr(Consumer, "_client_options", lambda self: {**options(self), **impatient})
    monkeypatch.setattr(consumer_module, "KEEP_ALIVE_SECONDS", 0.3)
    async with world.running(Subscription("slow", {Counted: slow})) as (consumer,):
        assignments = consumer._generation
        await world.send(*counted(1))
        await world.has_effects(1)
        await eventually(lambda: world.committed("slow"), lambda offset: offset == 1)
        assert consumer._generation == assignments
    assert await world.effects() == [("key-0", 0)]


async def test_a_hanging_handler_is_noticed_while_the_broker_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(event: Counted, uow: UnitOfWork) -> None:
        await asyncio.Event().wait()

    short = {"kafka_stall_timeout_seconds": 1, "kafka_drain_timeout_seconds": 0.1}
    world.settings = world.settings.model_copy(update=short)
    monkeypatch.setattr(lag, "ASSIGNMENT_INTERVAL_SECONDS", 0.1)
    async with world.running(Subscription("hanging", {Counted: hang})):
        await world.send(*counted(1))
        live = await eventually(world.health.live, lambda report: report.status != "ok")
    assert "no progress" in live.checks["consumer hanging"]
