"""The consumer on a real database and broker: each effect once, in order by key, whatever fails.

And in trouble: delays, dead letters and replay, overload, a database that is away.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.admin import TopicAdmin
from app.platform.kafka.codec import header
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.retry import replay_message
from app.platform.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription
from app.platform.kafka.topics import required_topics
from tests.fixtures import eventually
from tests.world import (
    Counted,
    World,
    committed_offsets,
    counted,
    failing,
    in_order_by_key,
    missing_table,
    record_effect,
)

FAST = RetryPolicy(attempts=3, initial=0.01, maximum=0.02)
ONE_SECOND = timedelta(seconds=1)


def delaying(attempts: int, *delays: timedelta) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, initial=0.01, maximum=0.02, retry_after=list(delays))


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
    "an empty value": b"",
}


@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
async def test_poison_is_dead_lettered_and_the_partition_goes_on(
    world: World, value: bytes
) -> None:
    async with world.running(Subscription("counter", {Counted: record_effect})):
        await world.send_bytes(value, key=b"key-0")
        await world.send(Counted(name="key-0", number=1))
        assert await world.has_effects(1) == [("key-0", 1)]
        (letter,) = await world.dead_letters("counter", 1)
    assert (letter.key, letter.value) == (b"key-0", value)
    headers = {name: header(letter.headers, name) for name, _ in letter.headers}
    assert headers["origin-topic"] == world.topic
    assert headers["consumer"] == "counter"
    assert headers["attempts"] == "1"
    assert headers["error-type"] == "UndecodableMessage"
    assert {"origin-partition", "origin-offset", "origin-timestamp"} <= set(headers)
    assert {"first-failed-at", "last-failed-at", "error-message"} <= set(headers)


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


async def test_topics_are_compared_with_all_that_they_are_made_with(
    world: World, real_kafka: str
) -> None:
    subscription = Subscription("counter", {Counted: record_effect})
    await world.create_topics(subscription)

    async def compared(**settings: int) -> dict[str, str]:
        asked = world.settings.model_copy(update=settings)
        async with TopicAdmin.connected(asked) as admin:
            states = await admin.compare(required_topics(asked, world.registry, [subscription]))
        return {state.topic.name: f"{state.state}: {state.detail}" for state in states}

    await eventually(compared, lambda found: set(found.values()) == {"present: "})
    asked_for = {
        "kafka_topic_partitions": 4,
        "kafka_topic_replication_factor": 2,
        "kafka_topic_retention_hours": 1,
    }
    assert (await compared(**asked_for))[world.topic] == (
        "different: 3 partitions, expected 4; replication 1, expected 2;"
        " retention.ms 604800000, expected 3600000"
    )


# In trouble


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


async def test_a_message_replayed_repeatedly_is_applied_once(
    world: World,
) -> None:
    broken = Subscription(
        "counter", {Counted: failing(99, RuntimeError("a bug"))}, retry=delaying(1)
    )
    repaired = Subscription("counter", {Counted: record_effect})
    async with world.running(broken):
        await world.send(*counted(3))
        letters = await world.dead_letters("counter", 3)
    async with world.running(repaired):
        for _ in range(2):
            assert await world.producer.send_all([replay_message(x) for x in letters]) == [None] * 3
        await world.has_effects(3)
        await world.send(Counted(name="last", number=99))
        await world.has_effects(4)
        replays, group = f"{world.topic}.counter.replay", f"{world.settings.kafka_group_id}.counter"
        await eventually(
            lambda: committed_offsets(world.settings, group, replays), lambda offset: offset == 6
        )
    assert sorted(number for _, number in await world.effects()) == [0, 1, 2, 99]


async def test_a_replay_that_fails_again_is_no_overload(world: World) -> None:
    patient = OverloadPolicy(window=5, threshold=1.0, probe_initial=60, probe_maximum=60)
    subscription = Subscription("counter", {Counted: record_effect}, overload=patient)
    async with world.running(subscription):
        for event in counted(8):
            await world.send(event)
            await world.send_bytes(b"poison", event.key.encode())
        letters = await world.dead_letters("counter", 8)
        await world.producer.send_all([replay_message(letter) for letter in letters])
        await world.dead_letters("counter", 16)  # one wait for a probe would outlast this test


async def test_a_replay_reaches_only_the_consumer_that_failed(world: World) -> None:
    seen: list[int] = []

    async def note(event: Counted, uow: UnitOfWork) -> None:
        seen.append(event.number)

    broken = Subscription("broken", {Counted: failing(1, RuntimeError("once"))}, retry=delaying(1))
    async with world.running(broken, Subscription("other", {Counted: note})):
        await world.send(*counted(1))
        (letter,) = await world.dead_letters("broken", 1)
        await world.producer.send(replay_message(letter))
        await world.has_effects(1)
        await eventually(lambda: world.committed("other"), lambda offset: offset == 1)
    assert seen == [0]
    assert header(letter.headers, "ce_id") == header(replay_message(letter).headers, "ce_id")


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
        await asyncio.sleep(0.5)
        assert dependency.calls - calls <= 10  # probes, not the whole topic
        dependency.up = True
        await eventually(lambda: asyncio.sleep(0, consumer.status.overload is None))
        lost = len(await world.records(f"{world.topic}.touchy.dlq"))
        effects = await world.has_effects(100 - lost)
        assert REGISTRY.get_sample_value("kafka_consumer_paused", paused) == 0
    assert lost <= 5
    assert in_order_by_key(effects)


async def test_tombstones_and_undecodable_messages_delay_no_other(
    world: World,
) -> None:
    async with world.running(Subscription("mixed", {Counted: record_effect})):
        for number in range(60):
            await world.send_bytes(None if number % 2 else b"poison", b"key-0")
        await world.send(Counted(name="key-0", number=1))
        assert await world.has_effects(1) == [("key-0", 1)]
        assert len(await world.dead_letters("mixed", 30)) == 30


async def test_a_database_that_is_away_costs_no_attempt_and_no_message(world: World) -> None:
    subscription = Subscription("patient", {Counted: record_effect}, retry=ONCE)
    events = counted(10)
    async with world.running(subscription) as (consumer,):
        await world.send(*events[:5])
        await world.has_effects(5)
        async with connections_refused(world):
            await world.send(*events[5:])
            await eventually(lambda: asyncio.sleep(0, consumer.status.block_reason is not None))
            assert (await world.health.ready()).status == "unavailable"
            assert (await world.health.live()).status == "ok"
        effects = await world.has_effects(10)
        assert await world.records(f"{world.topic}.patient.dlq") == []
        await eventually(lambda: asyncio.sleep(0, consumer.status.block_reason is None))
    assert in_order_by_key(effects)


async def test_a_missing_table_costs_no_attempt_and_no_message(
    world: World,
) -> None:
    subscription = Subscription("early", {Counted: record_effect}, retry=ONCE)
    async with world.running(subscription) as (consumer,):
        async with missing_table(world.database, "effects"):
            await world.send(*counted(3))
            await eventually(lambda: asyncio.sleep(0, consumer.status.block_reason is not None))
            said = (await world.health.ready()).checks["consumer early"]
        effects = await world.has_effects(3)
        assert await world.records(f"{world.topic}.early.dlq") == []
    assert said == 'Unhealthy: ProgrammingError: relation "effects" does not exist'
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


async def test_a_stop_finishes_messages_in_flight_and_leaves_others(world: World) -> None:
    started = asyncio.Event()

    async def steady(event: Counted, uow: UnitOfWork) -> None:
        started.set()
        await asyncio.sleep(0.02)
        await record_effect(event, uow)

    subscription = Subscription("steady", {Counted: steady}, batch_size=10)
    await world.create_topics(subscription)
    await world.send(*counted(40))
    async with world.running(subscription):
        await started.wait()
    done = len(await world.effects())
    assert 0 < done < 40
    assert await world.committed("steady") == done
    async with world.running(subscription):
        effects = await world.has_effects(40)
    assert len(effects) == 40
    assert in_order_by_key(effects)


async def test_a_stop_rolls_back_work_beyond_the_drain_deadline(world: World) -> None:
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
