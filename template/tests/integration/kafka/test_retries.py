"""Delay topics, dead letters and replay on a real broker."""

import asyncio
from datetime import UTC, datetime, timedelta

from app.kafka.codec import header
from app.kafka.dlq import DeadLetter
from app.kafka.retry import replayed
from app.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription
from app.unit_of_work import UnitOfWork
from tests.eventually import eventually
from tests.integration.kafka.conftest import Counted, World, counted, failing, record_effect

ONE_SECOND = timedelta(seconds=1)
TWO_SECONDS = timedelta(seconds=2)


def delaying(attempts: int, *delays: timedelta) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, initial=0.01, maximum=0.02, retry_after=list(delays))


async def test_a_delayed_message_is_applied_later_and_never_early(world: World) -> None:
    attempts: list[datetime] = []

    async def fail_once(event: Counted, uow: UnitOfWork) -> None:
        attempts.append(datetime.now(UTC))
        if len(attempts) == 1:
            raise RuntimeError("not yet")
        await record_effect(event, uow)

    subscription = Subscription("counter", {Counted: fail_once}, retry=delaying(1, ONE_SECOND))
    async with world.running(subscription):
        await world.send(*counted(1))
        await world.has_effects(1)
        (delayed,) = await world.records(f"{world.topic}.counter.retry.1s")
    due = datetime.fromisoformat(header(delayed.headers, "due-at") or "")
    assert len(attempts) == 2
    assert attempts[1] >= due >= attempts[0] + ONE_SECOND


async def test_a_delayed_message_does_not_block_the_others(world: World) -> None:
    first, *others = counted(20, keys=1)

    async def fail_first(event: Counted, uow: UnitOfWork) -> None:
        if event.number == 0:
            raise RuntimeError("always")
        await record_effect(event, uow)

    subscription = Subscription(
        "counter", {Counted: fail_first}, retry=delaying(1, timedelta(minutes=5))
    )
    async with world.running(subscription):
        await world.send(first, *others)
        effects = await world.has_effects(19)
    assert [number for _, number in effects] == list(range(1, 20))


async def test_attempts_and_first_failure_travel_through_the_delays_to_the_dead_letter(
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


async def test_a_replayed_message_is_applied_once_however_often_it_is_replayed(
    world: World,
) -> None:
    broken = Subscription(
        "counter", {Counted: failing(99, RuntimeError("a bug"))}, retry=delaying(1)
    )
    mended = Subscription("counter", {Counted: record_effect})
    async with world.running(broken):
        await world.send(*counted(3))
        letters = await world.dead_letters("counter", 3)
    async with world.running(mended):
        for _ in range(2):
            assert await world.producer.send_all([replayed(x) for x in letters]) == [None] * 3
        await world.has_effects(3)
        await world.send(Counted(name="last", number=99))
        await world.has_effects(4)
        await asyncio.sleep(0.5)  # room for a second application, if there were one
    assert sorted(number for _, number in await world.effects()) == [0, 1, 2, 99]


async def test_a_replay_of_what_still_fails_is_no_overload(world: World) -> None:
    patient = OverloadPolicy(window=5, threshold=1.0, probe_initial=60, probe_maximum=60)
    subscription = Subscription("counter", {Counted: record_effect}, overload=patient)
    async with world.running(subscription):
        for event in counted(8):
            await world.send(event)
            await world.send_bytes(b"poison", event.key.encode())
        letters = await world.dead_letters("counter", 8)
        await world.producer.send_all([replayed(letter) for letter in letters])
        await world.dead_letters("counter", 16)  # one wait for a probe would outlast this test


async def test_a_replay_reaches_only_the_consumer_that_failed(world: World) -> None:
    seen: list[int] = []

    async def note(event: Counted, uow: UnitOfWork) -> None:
        seen.append(event.number)

    broken = Subscription("broken", {Counted: failing(1, RuntimeError("once"))}, retry=delaying(1))
    async with world.running(broken, Subscription("other", {Counted: note})):
        await world.send(*counted(1))
        (letter,) = await world.dead_letters("broken", 1)
        await world.producer.send(replayed(letter))
        await world.has_effects(1)
        await eventually(lambda: world.committed("other"), lambda offset: offset == 1)
    assert seen == [0]
    assert header(letter.headers, "ce_id") == header(replayed(letter).headers, "ce_id")
