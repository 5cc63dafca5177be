"""The consumer on a real database and broker: each effect once, in order by key, whatever fails."""

from uuid import uuid4

import pytest
from sqlalchemy import text

from app.kafka.codec import header
from app.kafka.errors import PermanentError
from app.kafka.subscription import RetryPolicy, Subscription
from app.unit_of_work import UnitOfWork
from tests.eventually import eventually
from tests.integration.conftest import (
    Counted,
    World,
    counted,
    failing,
    in_order_by_key,
    record_effect,
)

FAST = RetryPolicy(attempts=3, initial=0.01, maximum=0.02)


async def test_events_are_applied_in_order_by_key(world: World) -> None:
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send(*counted(200))
        effects = await world.has_effects(200)
    assert len(effects) == 200
    assert in_order_by_key(effects)


async def test_offsets_are_committed_once_the_effects_are(world: World) -> None:
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send(*counted(50))
        await world.has_effects(50)
        await eventually(lambda: world.committed("counter"), lambda offset: offset == 50)


async def test_the_same_event_twice_changes_nothing_the_second_time(world: World) -> None:
    first, second = counted(2)
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send(first, first, second)
        await world.send(first)
        await eventually(lambda: world.committed("counter"), lambda offset: offset == 4)
    assert sorted(await world.effects()) == [("key-0", 0), ("key-1", 1)]


async def test_a_handler_that_fails_half_way_leaves_nothing_behind(world: World) -> None:
    subscription = Subscription(
        "counter", {Counted: failing(99, RuntimeError("half way"))}, retry=FAST
    )
    async with world.running(subscription):
        await world.send(*counted(1))
        await world.dead_letters("counter", 1)
    assert await world.effects() == []
    async with world.database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM inbox")) == 0


async def test_a_transient_failure_is_retried_in_place(world: World) -> None:
    subscription = Subscription(
        "counter", {Counted: failing(2, RuntimeError("for now"))}, retry=FAST
    )
    async with world.running(subscription):
        await world.send(*counted(1))
        assert await world.has_effects(1) == [("key-0", 0)]
        assert await world.records(f"{world.topic}.counter.dlq") == []


async def test_a_permanent_error_is_dead_lettered_at_once(world: World) -> None:
    calls = 0

    async def refuse(event: Counted, uow: UnitOfWork) -> None:
        nonlocal calls
        calls += 1
        raise PermanentError("never")

    async with world.running(Subscription("counter", {Counted: refuse}, retry=FAST)):
        await world.send(*counted(1))
        (letter,) = await world.dead_letters("counter", 1)
    assert calls == 1
    assert header(letter.headers, "error-type") == "PermanentError"


POISON = {
    "not JSON": b"\xff\xfe not json",
    "a wrong schema": b'{"event_id": "no uuid", "timestamp": "2026-01-01T00:00:00Z"}',
    "an unknown version": (
        b'{"event_id": "%s", "timestamp": "2026-01-01T00:00:00Z", "version": "9.0.0",'
        b' "event_type": "thing.counted", "name": "k", "number": 1}' % str(uuid4()).encode()
    ),
    "no value": None,
}


@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
async def test_poison_is_dead_lettered_with_its_bytes_and_the_partition_goes_on(
    world: World, value: bytes | None
) -> None:
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send_bytes(value, key=b"key-0")
        await world.send(Counted(name="key-0", number=1))
        assert await world.has_effects(1) == [("key-0", 1)]
        (letter,) = await world.dead_letters("counter", 1)
    assert (letter.key, letter.value) == (b"key-0", value)
    told = {name: header(letter.headers, name) for name, _ in letter.headers}
    assert told["origin-topic"] == world.topic
    assert told["consumer"] == "counter"
    assert told["attempts"] == "1"
    assert told["error-type"] == "UndecodableMessage"
    assert {"origin-partition", "origin-offset", "origin-timestamp"} <= set(told)
    assert {"first-failed-at", "last-failed-at", "error-message"} <= set(told)


async def test_a_message_without_key_is_handled(world: World) -> None:
    event = Counted(name="none", number=7)
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send_bytes(event.model_dump_json().encode(), key=None)
        assert await world.has_effects(1) == [("none", 7)]


async def test_one_bad_message_in_a_batch_does_not_touch_the_others(world: World) -> None:
    async def picky(event: Counted, uow: UnitOfWork) -> None:
        await record_effect(event, uow)
        if event.number == 13:
            raise PermanentError("unlucky")

    events = counted(40, keys=3)
    await world.create_topics(Subscription("counter", {Counted: picky}))
    await world.send(*events)
    async with world.running(Subscription("counter", {Counted: picky}, retry=FAST)):
        effects = await world.has_effects(39)
        await world.dead_letters("counter", 1)
    assert sorted(number for _, number in effects) == [n for n in range(40) if n != 13]
    assert in_order_by_key(effects)


async def test_lanes_keep_the_order_by_key(world: World) -> None:
    subscription = Subscription("counter", {Counted: record_effect}, concurrency=4)
    await world.create_topics(subscription)
    await world.send(*counted(300, keys=7))
    async with world.running(subscription):
        effects = await world.has_effects(300)
    assert len(effects) == 300
    assert in_order_by_key(effects)


async def test_a_batch_handler_takes_many_events_at_once(world: World) -> None:
    sizes: list[int] = []

    async def in_bulk(events: list[Counted], uow: UnitOfWork) -> None:
        sizes.append(len(events))
        for event in events:
            await record_effect(event, uow)

    subscription = Subscription("counter", {Counted: in_bulk}, batch=True)
    await world.create_topics(subscription)
    await world.send(*counted(100, keys=1))
    async with world.running(subscription):
        effects = await world.has_effects(100)
    assert len(effects) == 100
    assert max(sizes) > 1


async def test_two_subscriptions_each_see_every_event(world: World) -> None:
    names: list[str] = []

    async def note(event: Counted, uow: UnitOfWork) -> None:
        names.append(event.name)

    async with world.running(
        Subscription("first", {Counted: record_effect}), Subscription("second", {Counted: note})
    ):
        await world.send(*counted(10))
        await world.has_effects(10)
        await eventually(lambda: world.committed("second"), lambda offset: offset == 10)
    assert len(names) == 10


async def test_a_second_consumer_goes_on_where_the_first_stopped(world: World) -> None:
    subscription = Subscription("counter", {Counted: record_effect})
    events = counted(60)
    async with world.running(subscription):
        await world.send(*events[:30])
        await world.has_effects(30)
    await world.send(*events[30:])
    async with world.running(subscription):
        effects = await world.has_effects(60)
    assert len(effects) == 60
    assert in_order_by_key(effects)
