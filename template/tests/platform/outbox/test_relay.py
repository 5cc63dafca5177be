"""Relays on a real database, with a fake broker: every event is sent in order, whatever fails."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.platform.background import WakeUp
from app.platform.database.errors import DatabaseUnavailable
from app.platform.kafka.codec import Message
from app.platform.kafka.errors import BrokerUnavailable, MessageRejected
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import Outcome
from app.platform.outbox import relay, store, wakeup
from app.platform.outbox.model import bucket_of
from app.platform.outbox.store import ParkedFilter
from app.platform.outbox.transaction import transaction
from app.platform.outbox.wakeup import listening, notifying
from tests.fixtures import eventually
from tests.platform.outbox.conftest import (
    MOVED,
    SOLD,
    TOPICS,
    Moved,
    Sold,
    World,
    in_order_by_key,
    moved,
    numbers,
    outbox_settings,
)


class Slow(FakeProducer):
    """A slow producer, so that relays compete."""

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        await asyncio.sleep(0.02)
        return await super().send_all(messages)


async def test_committed_events_are_sent_in_order_by_key(
    world: World,
) -> None:
    await world.write(*moved(300))
    async with world.relaying():
        await world.is_empty()
    assert len(world.producer.sent) == 300
    assert in_order_by_key(world.delivered())


async def test_relays_share_the_work_and_keep_the_order(world: World) -> None:
    world.producer = Slow(TOPICS)
    world.settings = outbox_settings(outbox_batch_rows=7, outbox_buckets=4)
    events = moved(400, keys=13)
    async with world.relaying(3):
        for begin in range(0, 400, 20):
            await world.write(*events[begin : begin + 20])
        await world.is_empty(30)
    sent = numbers(world.producer.sent)
    assert len(world.producer.sent) == 400  # nothing twice, because no relay died
    assert in_order_by_key(sent)


async def test_a_bucket_locked_by_another_relay_is_skipped(
    world: World,
) -> None:
    world.settings = outbox_settings(outbox_relay_tasks=1)
    await world.write(*moved(5, keys=5))
    async with world.relaying():
        await world.is_empty()  # so the buckets have their rows
    theirs = {"bucket": bucket_of(MOVED, b"key-0", world.settings.outbox_buckets)}
    async with world.database.engine.begin() as connection:
        await connection.execute(
            text("SELECT FROM outbox_buckets WHERE bucket = :bucket FOR UPDATE"), theirs
        )
        async with world.relaying():
            await world.write(*(Moved(name=f"key-{n}", number=5 + n) for n in range(5)))
            await eventually(world.rows, lambda rows: len(rows) == 1, 5)
            await asyncio.sleep(0.2)
            assert ("key-0", 5) not in world.delivered()
    async with world.relaying():
        await world.is_empty()


async def test_a_commit_is_sent_at_once_in_its_process(world: World) -> None:
    world.settings = outbox_settings(outbox_poll_seconds=30)
    async with world.relaying():
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await world.write(*moved(1))
        await world.is_empty()
        assert time.monotonic() - started < 5


async def test_a_named_bucket_is_sent_without_looking_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], store.waiting_buckets

    async def counted(connection: AsyncConnection) -> list[int]:
        looks.append(await look(connection))
        return looks[-1]

    monkeypatch.setattr(store, "waiting_buckets", counted)
    world.settings = outbox_settings(outbox_poll_seconds=60)
    await world.write(*moved(1))
    async with world.relaying():
        await world.is_empty()
        await eventually(lambda: asyncio.sleep(0, looks))
        for _ in range(3):
            await world.write(*moved(1))
            await world.is_empty()
    assert len(looks) <= 2  # at the start, and for the commit before it


async def test_a_named_bucket_that_was_locked_is_looked_at_soon(world: World) -> None:
    await world.write(*moved(1))
    async with world.relaying():
        await world.is_empty()
    world.settings = outbox_settings(outbox_poll_seconds=60)
    theirs = {"bucket": bucket_of(MOVED, b"key-0", world.settings.outbox_buckets)}
    async with world.relaying():
        await asyncio.sleep(0.2)
        async with world.database.engine.begin() as connection:
            await connection.execute(
                text("SELECT FROM outbox_buckets WHERE bucket = :bucket FOR UPDATE"), theirs
            )
            await world.write(*moved(1))
            await asyncio.sleep(0.2)
        await world.is_empty()


async def test_a_read_only_server_replaces_the_pool(world: World) -> None:
    engine = world.database.engine
    await world.write(*moved(1))
    async with engine.begin() as connection:
        buckets = await store.waiting_buckets(connection)
    async with engine.connect() as connection:
        await connection.execute(text("SET default_transaction_read_only = on"))
        await connection.commit()
    before = engine.pool
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with transaction(engine, 5, 5, buckets):
            pass
    assert engine.pool is not before
    async with transaction(engine, 5, 5, buckets) as opened:
        assert (await opened.oldest_rows(10, 1_000_000)).locked == set(buckets)


async def test_rows_of_other_processes_are_found_by_polling(world: World) -> None:
    async with world.relaying():
        world.published = WakeUp()  # the writer's is not the relay's
        await world.write(*moved(3))
        await world.is_empty()


async def test_a_commit_is_sent_at_once_when_its_process_has_no_relay(world: World) -> None:
    world.settings = outbox_settings(outbox_poll_seconds=30)
    engine, relays, writers = world.database.engine, world.published, WakeUp()
    async with world.relaying(), listening(engine, relays), notifying(engine, writers):
        await asyncio.sleep(0.2)
        world.published = writers
        for _ in range(2):  # the second one after a pause
            started = time.monotonic()
            await world.write(*moved(1))
            await world.is_empty()
            assert time.monotonic() - started < 5


async def test_notifications_resume_after_lost_connections(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "_HEARTBEAT_SECONDS", 0.1)
    engine, relays, writers = world.database.engine, WakeUp(), WakeUp()

    async def heard() -> bool:
        writers.set()
        await asyncio.sleep(0.1)
        return relays.is_set()

    async with listening(engine, relays), notifying(engine, writers):
        await eventually(heard)  # every new listener wakes its relay once
        relays.clear()
        await eventually(heard)
        async with engine.begin() as connection:
            cut = await connection.scalar(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        assert (cut or 0) >= 2
        await asyncio.sleep(0.2)
        relays.clear()
        await eventually(heard)


async def test_an_outage_of_the_broker_counts_no_attempt(
    world: World,
) -> None:
    world.producer.available = False
    world.settings = outbox_settings(outbox_max_attempts=1)
    async with world.relaying() as (running,):
        await world.write(*moved(20))
        await eventually(lambda: asyncio.sleep(0, running.problem))
        await asyncio.sleep(0.5)
        assert [row["attempts"] for row in await world.rows()] == [0] * 20
        assert await world.rows("outbox_parked") == []
        world.producer.available = True
        await world.is_empty()
        assert running.problem is None
    assert in_order_by_key(world.delivered())


async def test_a_relay_recovers_though_another_sent_the_rows(
    world: World,
) -> None:
    world.producer.available = False
    away = FakeProducer(TOPICS)
    away.available = False
    async with world.relaying(), world.relaying(producer=away) as (idle,):
        await world.write(*moved(1))
        await eventually(lambda: asyncio.sleep(0, idle.problem))
        world.producer.available = True
        await world.is_empty()
        assert idle.problem is not None
        away.available = True
        await eventually(lambda: asyncio.sleep(0, idle.problem is None))
    assert away.sent == []


async def test_no_transaction_is_open_during_an_outage(world: World) -> None:
    world.producer.available = False
    async with world.relaying() as (running,):
        await world.write(*moved(5))
        await eventually(lambda: asyncio.sleep(0, running.problem))

        async def is_any_open() -> bool:
            async with world.database.engine.connect() as connection:
                open_ones = text(
                    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
                    " AND datname = current_database() AND pid <> pg_backend_pid()"
                )
                return bool(await connection.scalar(open_ones))

        # Batches that were in flight at the first failure come to their end.
        await eventually(is_any_open, lambda is_open: not is_open)


class Dying(FakeProducer):
    """A producer that delivers, and never answers."""

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        await super().send_all(messages)
        await asyncio.Event().wait()
        return []


async def test_the_rows_of_a_dead_relay_are_sent_by_the_next(world: World) -> None:
    world.settings = outbox_settings(outbox_buckets=1)
    await world.write(*moved(30))
    dying = Dying(TOPICS)
    stuck = world.relay(dying)
    async with stuck.running(stop_seconds=0.1):
        await eventually(lambda: asyncio.sleep(0, len(dying.sent) == 30))
    assert len(await world.rows()) == 30
    async with world.relaying():
        await world.is_empty()
    assert sorted(world.delivered()) == sorted(numbers(dying.sent))
    assert in_order_by_key(numbers([*dying.sent, *world.producer.sent]))


async def test_a_relay_recovers_from_a_cut_connection(world: World) -> None:
    """Like a frozen relay that continues after the server has disconnected it."""

    class Cutting(FakeProducer):
        cuts = 0

        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            outcomes = await super().send_all(messages)
            if not self.cuts:
                self.cuts += 1
                async with world.database.engine.connect() as connection:
                    await connection.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                            " AND query LIKE '%octet_length%'"  # the relay, after reading its rows
                        )
                    )
            return outcomes

    world.producer = Cutting(TOPICS)
    world.settings = outbox_settings(outbox_relay_tasks=1, outbox_buckets=1)
    await world.write(*moved(10, keys=2))
    async with world.relaying():
        await world.is_empty()
    assert len(world.producer.sent) == 20  # all of them twice
    assert in_order_by_key(world.delivered())


async def test_a_frozen_relay_sends_its_batch_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_MARGIN_SECONDS", 0.2)

    class Frozen(FakeProducer):
        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            outcomes = await super().send_all(messages)
            if len(self.sent) == len(messages):
                time.sleep(1.0)  # noqa: ASYNC251 - the whole process stands still
            return outcomes

    world.producer = Frozen(TOPICS)
    world.settings = outbox_settings(outbox_relay_tasks=1, outbox_buckets=1)
    await world.write(*moved(10, keys=2))
    frozen = world.relay(send_timeout=0.2)
    async with frozen.running(stop_seconds=5):
        await world.is_empty()
    assert len(world.producer.sent) == 20


async def test_the_server_ends_a_frozen_transaction(world: World) -> None:
    await world.write(*moved(1))
    async with world.database.engine.begin() as connection:
        (bucket,) = await store.waiting_buckets(connection)

    async def stand_still() -> None:
        engine = world.database.engine
        async with transaction(engine, 5, 0.2, [bucket]) as frozen:
            await asyncio.sleep(0.6)
            async with transaction(engine, 5, 5, [bucket]) as another:
                locked, (row,), _ = await another.oldest_rows(10, 1_000_000)
                assert locked == {bucket}
            frozen.delete([row.id])

    with pytest.raises(DatabaseUnavailable):
        await stand_still()
    assert len(await world.rows()) == 1


async def test_lower_ids_that_commit_late_are_sent(world: World) -> None:
    sending = asyncio.Event()
    go_on = asyncio.Event()

    class Waiting(FakeProducer):
        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            sending.set()
            await go_on.wait()
            return await super().send_all(messages)

    world.producer = Waiting(TOPICS)
    world.settings = outbox_settings(outbox_buckets=1)
    async with world.units.begin() as slow:
        await slow.events.publish(Moved(name="slow", number=1))
        await slow.session.run_sync(lambda session: session.dispatch.before_commit(session))
        await world.write(Moved(name="quick", number=2))
        async with world.relaying():
            await sending.wait()
            await slow.session.commit()
            go_on.set()
            await world.is_empty()
    assert sorted(world.delivered()) == [("quick", 2), ("slow", 1)]


async def test_a_busy_key_does_not_starve_others(world: World) -> None:
    world.producer = Slow(TOPICS)
    world.settings = outbox_settings(outbox_batch_rows=10, outbox_relay_tasks=1)
    await world.write(*moved(1000, keys=1))
    async with world.relaying():
        await eventually(lambda: asyncio.sleep(0, world.producer.sent))
        await world.write(Moved(name="other", number=0))
        await eventually(lambda: asyncio.sleep(0, ("other", 0) in world.delivered()))
        assert len(world.producer.sent) < 500
        await world.is_empty(30)


async def test_a_batch_is_bounded_in_bytes(world: World) -> None:
    sizes: list[int] = []

    class Weighing(FakeProducer):
        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            sizes.append(sum(len(m.value or b"") for m in messages))
            return await super().send_all(messages)

    world.producer = Weighing(TOPICS)
    world.settings = outbox_settings(outbox_batch_bytes=50_000, outbox_buckets=1)
    await world.write(*(Moved(name="k", number=n, load="x" * 20_000) for n in range(20)))
    async with world.relaying():
        await world.is_empty()
    assert max(sizes) < 75_000
    assert in_order_by_key(world.delivered())


async def test_order_survives_a_change_of_the_bucket_count(world: World) -> None:
    world.producer = Slow(TOPICS)
    events = moved(300, keys=10)
    for begin, buckets in [(0, 32), (100, 8), (200, 64)]:
        world.settings = outbox_settings(outbox_buckets=buckets, outbox_batch_rows=20)
        await world.write(*events[begin : begin + 100])
    async with world.relaying(3):
        await world.is_empty(30)
    assert len(world.delivered()) == 300
    assert in_order_by_key(world.delivered())


async def test_the_next_topic_of_a_key_waits_for_the_first(
    world: World,
) -> None:
    waves: list[list[str]] = []

    class Noting(FakeProducer):
        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            waves.append([message.topic for message in messages])
            return await super().send_all(messages)

    world.producer = Noting(TOPICS)
    await world.write(
        Moved(name="a", number=1), Sold(name="a", number=2), Moved(name="a", number=3)
    )
    async with world.relaying():
        await world.is_empty()
    assert waves == [["shop.thing.moved"], ["shop.thing.sold"], ["shop.thing.moved"]]


# Poison


class Refusing(FakeProducer):
    """A producer that permanently refuses events of certain numbers."""

    def __init__(self, *bad: int) -> None:
        super().__init__(TOPICS)
        self.bad = set(bad)

    def _refusal(self, message: Message) -> BrokerUnavailable | MessageRejected | None:
        number = Moved.model_validate_json(
            (message.value or b"").replace(b"thing.sold", b"thing.moved")
        ).number
        return MessageRejected("no") if number in self.bad else None


async def test_block_parks_the_row_and_those_behind_it(world: World) -> None:
    world.producer = producer = Refusing(4)
    await world.write(*moved(20, keys=4))
    async with world.relaying():
        await world.is_empty()
        await world.write(Sold(name="key-0", number=20), Moved(name="key-1", number=21))
        await world.is_empty()
    sent = [number for _, number in world.delivered()]
    assert [n for n in sent if n % 4 == 0] == [0]  # of the blocked key, only the event before
    assert sorted(n for n in sent if n % 4) == [*(n for n in range(20) if n % 4), 21]
    rows = await world.rows("outbox_parked")
    assert [row["held"] for row in rows] == [False, *[True] * 4]
    assert rows[0]["reason"] == "MessageRejected: no"
    producer.bad.clear()
    assert await store.retry(world.database.engine, [int(str(rows[0]["id"]))]) == 5
    async with world.relaying():
        await world.is_empty()
    assert len(world.delivered()) == 22
    assert in_order_by_key(world.delivered())
    assert await world.rows("outbox_parked") == []


async def test_discarding_the_parked_row_unblocks_its_key(world: World) -> None:
    world.producer = Refusing(0)
    await world.write(*moved(3, keys=1))
    async with world.relaying():
        (first, *_) = await world.has_parked(3)
        assert await store.discard(world.database.engine, [int(str(first["id"]))]) == 1
        await eventually(lambda: world.rows("outbox_parked"), lambda rows: not rows)
        await world.is_empty()
    assert world.delivered() == [("key-0", 1), ("key-0", 2)]


@pytest.mark.parametrize(("what", "count"), [(store.retry, 40_000), (store.discard, 1)])
async def test_more_rows_than_arguments_can_be_unblocked(
    world: World, what: Callable[[AsyncEngine, Sequence[int]], Awaitable[int]], count: int
) -> None:
    bucket = bucket_of(MOVED, b"k", world.settings.outbox_buckets)
    held = text(
        "INSERT INTO outbox_parked (id, held, reason, bucket, topic, key, value)"
        " SELECT n, n > 1, 'why', :bucket, :topic, 'k', '' FROM generate_series(1, 40000) AS n"
    )
    async with world.database.engine.begin() as connection:
        await connection.execute(held, {"bucket": bucket, "topic": MOVED})
    assert await what(world.database.engine, [1]) == count
    assert await world.rows("outbox_parked") == []


async def test_more_rows_than_arguments_can_be_found(world: World) -> None:
    async with world.database.sessions() as session:
        assert await store.find_parked(session, ParkedFilter(range(40_000))) == []


async def test_a_row_with_a_long_key_can_be_parked(world: World) -> None:
    world.producer = Refusing(1)
    await world.write(Moved(name=secrets.token_hex(5_000), number=1))
    async with world.relaying():
        await world.has_parked(1)
        await world.is_empty()


async def test_park_sends_the_later_events_of_the_key(world: World) -> None:
    world.settings = outbox_settings(outbox_on_poison="park")
    world.producer = Refusing(2)
    await world.write(*moved(6, keys=2))
    async with world.relaying():
        await world.is_empty()
    assert sorted(number for _, number in world.delivered()) == [0, 1, 3, 4, 5]
    assert [row["held"] for row in await world.rows("outbox_parked")] == [False]


@pytest.mark.parametrize("missing", [True, False])
async def test_a_refusing_topic_delays_only_its_own_events(world: World, missing: bool) -> None:
    if missing:
        world.producer = FakeProducer([MOVED])
    else:
        world.producer.refusing[SOLD] = "TopicAuthorizationFailedError"
    world.settings = outbox_settings(outbox_max_attempts=1, outbox_buckets=1)
    await world.write(
        Sold(name="a", number=1), Moved(name="a", number=2), Moved(name="b", number=3)
    )
    async with world.relaying():
        await eventually(lambda: asyncio.sleep(0, world.delivered()), lambda d: d == [("b", 3)])
        await world.write(Moved(name="c", number=4))
        await eventually(lambda: asyncio.sleep(0, world.delivered()), lambda d: len(d) == 2)
        rows = await eventually(world.rows, lambda rows: len(rows) == 2)
        assert [row["attempts"] for row in rows] == [0, 0]
        world.producer.refusing.clear()
        world.producer._topics = None
        await world.is_empty()
    assert world.delivered() == [("b", 3), ("c", 4), ("a", 1), ("a", 2)]
    assert await world.rows("outbox_parked") == []


async def test_a_refusing_topic_backs_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_TOPIC_BACKOFF", (60.0, 60.0))

    class Counting(FakeProducer):
        tries = 0

        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            self.tries += any(message.topic == SOLD for message in messages)
            return await super().send_all(messages)

    world.producer = producer = Counting([MOVED])
    world.settings = outbox_settings(outbox_buckets=1)
    await world.write(Sold(name="a", number=1))
    async with world.relaying():
        await eventually(lambda: asyncio.sleep(0, producer.tries))
        await world.write(*moved(20, keys=5))
        await eventually(lambda: asyncio.sleep(0, world.delivered()), lambda d: len(d) == 20)
    assert producer.tries == 1


async def test_the_backlog_of_a_topic_backing_off_is_skipped(world: World) -> None:
    """The query stays within the relay's limit, although the statistics show an empty table."""
    bucket = bucket_of(SOLD, b"k", 1)
    backlog = text(
        "INSERT INTO outbox (bucket, topic, key, value)"
        " SELECT :bucket, :topic, convert_to(CAST(n AS text), 'UTF8'), ''"
        " FROM generate_series(1, 50000) AS n"
    )
    other = text("INSERT INTO outbox (bucket, topic, key, value) VALUES (:bucket, :topic, 'k', '')")
    async with world.database.engine.begin() as connection:
        await connection.execute(backlog, {"bucket": bucket, "topic": SOLD})
        await connection.execute(other, {"bucket": bucket, "topic": MOVED})
        buckets = await store.waiting_buckets(connection)
    seconds = relay._STATEMENT_TIMEOUT_SECONDS
    async with transaction(world.database.engine, seconds, seconds, buckets) as opened:
        _, rows, _ = await opened.oldest_rows(10, 1_000_000, [SOLD])
    assert [row.message.topic for row in rows] == [MOVED]


async def test_a_row_that_breaks_the_client_is_parked_alone(world: World) -> None:
    class Broken(FakeProducer):
        async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
            if any(b'"number":3,' in (message.value or b"") for message in messages):
                raise TypeError("cannot serialise this")
            return await super().send_all(messages)

    world.producer = Broken(TOPICS)
    world.settings = outbox_settings(outbox_max_attempts=2, outbox_buckets=1)
    await world.write(*moved(10, keys=5))
    async with world.relaying():
        await world.has_parked(2)
        await world.is_empty()
    rows = await world.rows("outbox_parked")
    assert [row["held"] for row in rows] == [False, True]  # 3, and 8 of the same key
    assert "cannot serialise this" in str(rows[0]["reason"])
    assert len(world.delivered()) == 8


async def test_a_changed_bucket_count_keeps_a_key_blocked(
    world: World,
) -> None:
    world.producer = producer = Refusing(0)
    world.settings = outbox_settings(outbox_buckets=32)
    await world.write(Moved(name="k", number=0))
    async with world.relaying():
        await world.has_parked(1)
    world.settings = outbox_settings(outbox_buckets=8)
    assert bucket_of(MOVED, b"k", 8) != bucket_of(MOVED, b"k", 32)
    await world.write(Moved(name="k", number=1))
    async with world.relaying():
        await world.has_parked(2)
    producer.bad.clear()
    async with world.database.sessions() as session:
        (first,) = await store.find_parked(session, ParkedFilter(key="k"), blocked=False)
    assert await store.retry(world.database.engine, [first.id]) == 2
    async with world.relaying():
        await world.is_empty()
    assert world.delivered() == [("k", 0), ("k", 1)]
