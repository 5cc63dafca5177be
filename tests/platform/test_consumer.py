"""Subscriptions, offsets and lanes, and a consumer's status."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    TopicAuthorizationFailedError,
)
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY as METRICS
from samples import REGISTRY, TOPIC, MeterNamed, MeterRead, meter_read, record
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka import consumer as consumer_module
from app.platform.kafka import lag, offsets
from app.platform.kafka.consumer import Consumer, TopicsMissing
from app.platform.kafka.consumers import check_inbox_retention
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.lag import AssignmentLag
from app.platform.kafka.offsets import OffsetTracker, split_into_lanes
from app.platform.kafka.positions import Positions
from app.platform.kafka.reporting import error_fields
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.status import BlockSource, ConsumerStatus, Draining
from app.platform.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription
from tests.fixtures import eventually


async def handle(event: object, uow: object) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"initial": -1}, "grow"),
        ({"initial": 2, "maximum": 1}, "grow"),
        ({"initial": float("nan")}, "grow"),
        ({"multiplier": 0.5}, "grow"),
        ({"multiplier": 1e6}, "grow"),
        ({"retry_after": [timedelta(0)]}, "whole number of seconds"),
        ({"retry_after": [timedelta(milliseconds=1500)]}, "whole number of seconds"),
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**wrong)


def test_a_delay_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        RetryPolicy(retry_after=[timedelta(seconds=60), timedelta(minutes=1)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "at least 1"),
        ({"probes": 0}, "at least 1"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"probe_initial": -1}, "grow"),
        ({"probe_initial": 100, "probe_maximum": 10}, "grow"),
    ],
)
def test_an_overload_policy_that_makes_no_sense_is_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OverloadPolicy(**wrong)


@pytest.mark.parametrize("name", ["", "Billing", "a.b", "-a", "a b", "billing\n", "b_c"])
def test_a_name_that_cannot_be_part_of_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="consumer name"):
        Subscription(name, {MeterRead: handle})


def test_a_subscription_needs_a_handler_a_lane_and_a_batch() -> None:
    with pytest.raises(ValueError, match="handles no event"):
        Subscription("billing", {})
    with pytest.raises(ValueError, match="at least 1"):
        Subscription("billing", {MeterRead: handle}, concurrency=0)
    with pytest.raises(ValueError, match="at least 1"):
        Subscription("billing", {MeterRead: handle}, batch_size=0)


def test_a_batch_handler_gets_larger_batches_by_default() -> None:
    one = Subscription("billing", {MeterRead: handle})
    many = Subscription("billing", {MeterRead: handle}, batch=True)
    billing = Subscription("billing", {MeterRead: handle}, batch=True, batch_size=10)

    assert one.max_batch_size < many.max_batch_size
    assert billing.max_batch_size == 10


def test_it_knows_the_handler_and_the_topic_of_each_event() -> None:
    subscription = Subscription("billing", {MeterRead: handle})

    assert subscription.handler(meter_read()) is handle
    assert subscription.topics(REGISTRY) == [TOPIC]
    assert MeterNamed not in subscription.handlers


def test_a_described_error_is_bounded() -> None:
    described = error_fields(ValueError("x" * 5000))

    assert described["error_type"] == "ValueError"
    assert len(described["error"]) == 1000


def test_of_an_error_of_the_database_one_line_is_described() -> None:
    said = Exception("no such column\nDETAIL:  (email)=(ada@example.com)")
    error = DBAPIError("UPDATE people SET email = :email", {"email": "ada@example.com"}, said)

    assert error_fields(error) == {"error_type": "DBAPIError", "error": "no such column"}


PARTITION = TopicPartition("shop.meter.read", 0)


class EndlessProcessor:
    """Never done with a batch; remembers that it was told to stop."""

    def __init__(self) -> None:
        self.stopped = False

    async def process(self, batch: object, progress: object, began: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped = True


class FailingClient:
    """A client that cannot poll any more."""

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        raise KafkaError("the coordinator is lost")

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    def pause(self, *partitions: TopicPartition) -> None:
        pass


async def ignore(event: MeterRead, uow: UnitOfWork) -> None:
    pass


class FakeClient:
    """Gives one record, and starts `then` in the same moment."""

    def __init__(self, then: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._then = then
        self.started: asyncio.Task[None] | None = None

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        self.started = asyncio.create_task(self._then())
        return {PARTITION: [record()]}

    def resume(self, *partitions: TopicPartition) -> None:
        pass


def consumer(name: str = "billing", owner: str | None = None) -> Consumer:
    return Consumer(
        Subscription(name, {MeterRead: ignore}),
        EventRegistry("shop", [EventType(MeterRead, service=owner)]),
        KafkaSettings(_env_file=None),
        UnitOfWorkFactory(None, None),  # type: ignore[arg-type]  # nothing is applied here
        FakeProducer(),
    )


@pytest.mark.parametrize(
    ("name", "topic", "more"),
    [
        ("kafka_messages_consumed_total", TOPIC, {}),
        ("kafka_messages_consumed_total", f"{TOPIC}.watchful.replay", {}),
        ("kafka_inbox_duplicates_total", TOPIC, {}),
        ("kafka_messages_failed_total", TOPIC, {"kind": "transient"}),
        ("kafka_messages_failed_total", TOPIC, {"kind": "permanent"}),
        ("kafka_messages_retried_total", TOPIC, {"place": "in_place"}),
        ("kafka_messages_retried_total", TOPIC, {"place": "delay_topic"}),
        ("kafka_messages_dead_lettered_total", TOPIC, {}),
    ],
)
async def test_counts_are_there_before_there_is_anything_to_count(
    name: str, topic: str, more: dict[str, str]
) -> None:
    consumer("watchful")

    assert METRICS.get_sample_value(name, {"consumer": "watchful", "topic": topic, **more}) == 0


async def test_messages_fetched_before_a_revocation_are_not_handled() -> None:
    billing = consumer()
    client = FakeClient(lambda: billing.on_partitions_revoked({PARTITION}))

    assert await billing._fetch(client) == {}


async def test_messages_revoked_during_the_check_are_not_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    billing, processor = consumer(), EndlessProcessor()
    client = FakeClient(lambda: asyncio.sleep(0))

    async def check(*_: object) -> None:
        await billing.on_partitions_revoked({PARTITION})
        billing._stopping.set()

    monkeypatch.setattr(billing, "_check", check)
    monkeypatch.setattr(billing, "_processor", processor)
    async with asyncio.timeout(10):
        await billing._consume(client)

    assert not processor.stopped


async def test_messages_of_a_new_assignment_are_handled() -> None:
    """They are fetched in the same call during which the partitions were assigned again."""
    billing = consumer()

    class Rebalancing(FakeClient):
        async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
            await billing.on_partitions_revoked({PARTITION})
            await billing.on_partitions_assigned({PARTITION})
            return await super().getmany(timeout_ms)

    assert await billing._fetch(Rebalancing(lambda: asyncio.sleep(0))) == {PARTITION: [record()]}


async def test_what_was_fetched_without_a_revocation_is_handled() -> None:
    billing = consumer()
    client = FakeClient(lambda: asyncio.sleep(0))

    assert await billing._fetch(client) == {PARTITION: [record()]}


async def test_a_batch_does_not_outlive_the_client_it_was_fetched_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    billing, processor = consumer(), EndlessProcessor()
    monkeypatch.setattr(consumer_module, "KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(billing, "_processor", processor)

    with pytest.raises(KafkaError, match="the coordinator is lost"):
        await billing._process(FailingClient(), {PARTITION: [record()]})

    assert processor.stopped


class Refusing(FailingClient):
    """A client whose commits the broker refuses, until it does not."""

    def __init__(self) -> None:
        self.error: KafkaError | None = TopicAuthorizationFailedError()
        self.asked = 0

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


def one_done() -> OffsetTracker:
    tracker = OffsetTracker({PARTITION: [record()]})
    tracker.mark_done(record())
    return tracker


async def test_between_two_commits_that_fail_there_is_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offsets, "COMMIT_RETRY_SECONDS", (60, 60))
    billing, client = consumer(), Refusing()
    committing = asyncio.create_task(billing._committer.commit_all(client, one_done()))
    reason = await eventually(lambda: asyncio.sleep(0, billing.status.block_reason))
    assert reason == "the broker refuses offset commits: TopicAuthorizationFailedError"
    await asyncio.wait({committing}, timeout=0.2)
    assert client.asked == 1

    billing.status.draining.set()
    async with asyncio.timeout(5):
        await committing
    assert client.asked == 2, "once more at the end"


async def test_a_consumer_resumes_when_offset_commits_succeed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offsets, "COMMIT_RETRY_SECONDS", (0.01, 0.01))
    billing, client = consumer(), Refusing()
    committing = asyncio.create_task(billing._committer.commit_all(client, one_done()))
    await eventually(lambda: asyncio.sleep(0, client.asked > 2))
    client.error = None
    async with asyncio.timeout(5):
        await committing
    assert billing.status.block_reason is None


def test_a_missing_foreign_topic_is_named_with_its_owner() -> None:
    error = TopicsMissing(["a.b.c", "shop.meter.read"], [], {"shop.meter.read": "shop"})

    assert str(error) == (
        "missing topics: a.b.c; run `app topics create`;"
        " missing topic shop.meter.read of the service shop, which has to create it"
    )


def test_a_consumer_knows_the_owners_of_its_foreign_topics() -> None:
    assert consumer(owner="shop")._owners == {TOPIC: "shop"}
    assert consumer()._owners == {}


async def test_other_partitions_end_the_trouble_with_the_last_ones() -> None:
    billing = consumer()
    billing.status.block("the broker refuses offset commits")
    await billing.on_partitions_revoked({PARTITION})
    await billing.on_partitions_assigned({PARTITION})

    assert billing.status.block_reason is None


DELAYS = [timedelta(hours=1), timedelta(hours=2)]


def delaying(*delays: timedelta) -> Subscription:
    return Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=delays))


def settings(topic_hours: int, inbox_hours: int, dlq_hours: int = 1) -> KafkaSettings:
    return KafkaSettings(
        kafka_topic_retention_hours=topic_hours,
        kafka_dlq_retention_hours=dlq_hours,
        inbox_retention_hours=inbox_hours,
        _env_file=None,
    )


@pytest.mark.parametrize(
    ("inbox_hours", "delays", "enough"),
    [(48, [], True), (47, [], False), (51, DELAYS, True), (50, DELAYS, False)],
)
def test_the_inbox_must_outlast_the_topic_and_all_delays(
    inbox_hours: int, delays: list[timedelta], enough: bool
) -> None:
    subscriptions = [delaying(), delaying(*delays)]
    with capture_logs() as logs:
        assert check_inbox_retention(settings(48, inbox_hours), subscriptions) is enough

    warned = [entry for entry in logs if "INBOX_RETENTION_HOURS" in entry["event"]]
    assert bool(warned) is not enough


@pytest.mark.parametrize(("inbox_hours", "enough"), [(124, False), (125, True)])
def test_the_inbox_must_outlast_dead_letters(inbox_hours: int, enough: bool) -> None:
    assert check_inbox_retention(settings(24, inbox_hours, dlq_hours=100), []) is enough


def test_the_defaults_are_enough() -> None:
    assert check_inbox_retention(KafkaSettings(_env_file=None), [])


Batch = dict[TopicPartition, list[ConsumerRecord]]

FIRST = TopicPartition(TOPIC, 0)


def batch_of(offsets_by_partition: dict[int, list[int]]) -> Batch:
    return {
        TopicPartition(TOPIC, partition): [
            record(partition=partition, offset=offset) for offset in offsets
        ]
        for partition, offsets in offsets_by_partition.items()
    }


# Offsets rise and may have gaps: transactions and compaction leave them.
BATCHES = st.dictionaries(
    st.integers(0, 3), st.sets(st.integers(0, 60), max_size=12).map(sorted), max_size=4
).map(batch_of)


@st.composite
def half_done(draw: st.DrawFn) -> tuple[Batch, list[ConsumerRecord]]:
    batch = draw(BATCHES)
    records = [r for part in batch.values() for r in part]
    order = draw(st.permutations(records))
    return batch, order[: draw(st.integers(0, len(order)))]


def tracker_of(batch: Batch, done: list[ConsumerRecord]) -> OffsetTracker:
    tracker = OffsetTracker(batch)
    for r in done:
        tracker.mark_done(r)
    return tracker


@given(half_done())
def test_nothing_undone_lies_below_what_may_be_committed(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    tracker = tracker_of(batch, done)

    for tp, committable in tracker.committable().items():
        below = [r for r in batch[tp] if r.offset < committable]
        assert below
        assert all(r in done for r in below)


@given(half_done())
def test_the_whole_done_beginning_may_be_committed(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    tracker = tracker_of(batch, done)

    committable = tracker.committable()
    for tp, records in batch.items():
        prefix = 0
        while prefix < len(records) and records[prefix] in done:
            prefix += 1
        assert committable.get(tp) == (records[prefix - 1].offset + 1 if prefix else None)


@given(half_done())
def test_each_partition_is_committed_or_rewound_to_undone_work(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    tracker = tracker_of(batch, done)

    committable, undone = tracker.committable(), tracker.first_undone()
    for tp, records in batch.items():
        if all(r in done for r in records):
            assert tp not in undone
        else:
            # Between the two lie only offsets that hold no record.
            again = undone[tp]
            assert again in [r.offset for r in records if r not in done]
            assert all(r.offset >= again for r in records if r.offset >= committable.get(tp, 0))
    assert tracker.complete == (not undone)


@given(half_done())
def test_offsets_once_committed_are_not_committed_again(
    case: tuple[Batch, list[ConsumerRecord]],
) -> None:
    batch, done = case
    tracker = OffsetTracker(batch)
    reached: dict[TopicPartition, int] = {}
    for r in done:
        tracker.mark_done(r)
        offsets = tracker.committable()
        assert all(offset > reached.get(tp, -1) for tp, offset in offsets.items())
        tracker.mark_committed(offsets)
        reached |= offsets

    assert tracker.committable() == {}


def test_a_gap_in_the_offsets_does_not_hold_the_commit_back() -> None:
    batch = batch_of({0: [3, 7, 8]})
    tracker = OffsetTracker(batch)
    tracker.mark_done(batch[FIRST][0])
    tracker.mark_done(batch[FIRST][1])

    assert tracker.committable() == {FIRST: 8}
    assert tracker.first_undone() == {FIRST: 8}


def test_a_record_done_twice_counts_once() -> None:
    batch = batch_of({0: [0, 1]})
    tracker = OffsetTracker(batch)
    tracker.mark_done(batch[FIRST][0])
    tracker.mark_done(batch[FIRST][0])

    assert not tracker.complete


def test_a_batch_without_records_is_complete() -> None:
    assert OffsetTracker({FIRST: []}).complete
    assert OffsetTracker({}).complete


KEYS = st.lists(st.one_of(st.none(), st.sampled_from([b"", b"a", b"b", b"\xff\xfe"]), st.binary()))
LANES = st.integers(1, 9)


def records_of(keys: list[bytes | None]) -> list[ConsumerRecord]:
    return [record(key=key, offset=offset) for offset, key in enumerate(keys)]


@given(KEYS, LANES)
def test_no_record_is_lost_or_doubled(keys: list[bytes | None], lanes: int) -> None:
    shared = split_into_lanes(records_of(keys), lanes)

    assert sorted(r.offset for lane in shared for r in lane) == list(range(len(keys)))


@given(KEYS, LANES)
def test_there_are_at_most_so_many_lanes_and_none_is_empty(
    keys: list[bytes | None], lanes: int
) -> None:
    shared = split_into_lanes(records_of(keys), lanes)

    assert len(shared) <= lanes
    assert all(shared)


@given(KEYS, LANES)
def test_a_key_stays_in_one_lane_in_its_order(keys: list[bytes | None], lanes: int) -> None:
    lanes_of_key: dict[bytes, set[int]] = defaultdict(set)
    for number, lane in enumerate(split_into_lanes(records_of(keys), lanes)):
        assert [r.offset for r in lane] == sorted(r.offset for r in lane)
        for r in lane:
            if r.key is not None:
                lanes_of_key[r.key].add(number)

    assert all(len(found) == 1 for found in lanes_of_key.values())


@given(st.integers(1, 50), LANES)
def test_records_without_a_key_are_spread_evenly(count: int, lanes: int) -> None:
    sizes = [len(lane) for lane in split_into_lanes(records_of([None] * count), lanes)]

    assert len(sizes) == min(count, lanes)
    assert max(sizes) - min(sizes) <= 1


def test_different_keys_use_all_lanes() -> None:
    keys: list[bytes | None] = [b"key-%d" % n for n in range(200)]

    assert len(split_into_lanes(records_of(keys), 4)) == 4


def test_a_key_has_one_lane_whichever_partition_it_comes_from() -> None:
    same = [record(key=b"k", partition=partition) for partition in range(5)]

    assert split_into_lanes(same, 4) == [same]


async def test_a_new_consumer_has_no_partitions_and_no_trouble() -> None:
    status = ConsumerStatus("billing")

    assert not status.assigned
    assert status.block_reason is None


async def test_a_blocked_consumer_is_reported_until_it_goes_on() -> None:
    status = ConsumerStatus("billing")
    status.block("the database is away")
    assert status.block_reason == "the database is away"

    status.unblock()
    assert status.block_reason is None


async def test_waiting_counts_as_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    status = ConsumerStatus("billing")
    monkeypatch.setattr(status, "_last_progress", time.monotonic() - 100)
    assert status.seconds_without_progress >= 100

    await status.wait(0.01)

    assert status.seconds_without_progress < 50


async def test_an_answer_of_the_broker_is_no_progress_of_a_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = ConsumerStatus("billing")
    monkeypatch.setattr(status, "_last_progress", time.monotonic() - 100)
    status.block("Kafka does not answer", BlockSource.BROKER_CHECK)
    status.unblock(BlockSource.BROKER_CHECK)
    assert status.seconds_without_progress >= 100

    status.block("the database is away")
    assert status.seconds_without_progress < 50


async def test_a_wait_ends_at_once_when_the_consumer_drains() -> None:
    status = ConsumerStatus("billing")
    asyncio.get_running_loop().call_later(0.01, status.draining.set)

    async with asyncio.timeout(5):
        with pytest.raises(Draining):
            await status.wait(60)


async def test_nothing_begins_while_the_consumer_drains() -> None:
    status = ConsumerStatus("billing")
    status.check_draining()
    status.draining.set()

    with pytest.raises(Draining):
        status.check_draining()
    with pytest.raises(Draining):
        await status.wait(0)


class Ends:
    """As much of a client as the lag meter asks, of a broker that may be away."""

    away = False
    error: KafkaError | None = None
    asked = 0
    beginning = 0
    offset: int | None = None
    deleted: Sequence[str] = ()

    async def beginning_offsets(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.beginning)

    async def committed(self, tp: TopicPartition) -> int | None:
        return self.offset

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return None if topic in self.deleted else {0}

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.away:
            await asyncio.sleep(60)
        return dict.fromkeys(partitions, 10)


async def test_an_idle_consumer_notices_that_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag, "ASSIGNMENT_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(lag, "ANSWER_TIMEOUT_SECONDS", 0.05)
    status, client, tp = ConsumerStatus("idle"), Ends(), TopicPartition("t", 0)
    meter = AssignmentLag(
        status, KafkaSettings(kafka_bootstrap_servers="127.0.0.1:9", _env_file=None)
    )
    meter.assigned([tp])
    meter.handled({tp: 7})

    def paused() -> float | None:
        labels = {"consumer": "idle", "reason": "infrastructure"}
        return METRICS.get_sample_value("kafka_consumer_paused", labels)

    async with meter.measuring(client):
        client.away = True
        reason = await eventually(lambda: asyncio.sleep(0, status.block_reason))
        assert reason is not None
        assert "Kafka does not answer: 127.0.0.1:9" in reason
        assert paused() == 1
        client.away = False
        await eventually(lambda: asyncio.sleep(0, status.block_reason is None))
        assert paused() == 0


async def test_the_lag_is_counted_from_what_was_committed_before() -> None:
    client, tp = Ends(), TopicPartition("shop.meter.read", 0)
    client.offset = 4
    meter = AssignmentLag(ConsumerStatus("late"), KafkaSettings(_env_file=None))
    meter.assigned([tp])
    await meter._measure_once(client)

    assert measured("late", "shop.meter.read") == 6


async def test_where_reading_has_not_begun_there_is_no_lag_yet() -> None:
    client, tp = Ends(), TopicPartition("shop.meter.read", 0)
    meter = AssignmentLag(ConsumerStatus("new"), KafkaSettings(_env_file=None))
    meter.assigned([tp])
    await meter._measure_once(client)
    assert measured("new", "shop.meter.read") is None

    meter.handled({tp: 2})
    await meter._measure_once(client)
    assert measured("new", "shop.meter.read") == 8


async def test_a_deleted_topic_is_no_broker_that_is_away() -> None:
    client, there, gone = Ends(), TopicPartition("there", 0), TopicPartition("gone", 0)
    client.deleted = ["gone"]
    meter = AssignmentLag(ConsumerStatus("half"), KafkaSettings(_env_file=None))
    meter.handled({there: 1, gone: 1})
    await meter._measure_once(client)

    assert measured("half", "there") == 9
    assert measured("half", "gone") is None


async def test_what_was_deleted_unread_is_no_lag() -> None:
    client, tp = Ends(), TopicPartition("shop.meter.read", 0)
    meter = AssignmentLag(ConsumerStatus("late"), KafkaSettings(_env_file=None))
    meter.assigned([tp])
    meter.handled({tp: 3})
    client.beginning = 9
    await meter._measure_once(client)

    assert measured("late", "shop.meter.read") == 1


class Beginning:
    """As much of a client as is asked where to begin, in a group of which some offsets are there."""

    def __init__(self, generation: int, offsets: dict[TopicPartition, int]) -> None:
        self._coordinator = self
        self.generation = generation
        self.offsets = offsets
        self.at: dict[TopicPartition, int] = {}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1}

    async def committed(self, tp: TopicPartition) -> int | None:
        return self.offsets.get(tp)

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.at |= dict.fromkeys(partitions, 3)

    async def seek_to_end(self, *partitions: TopicPartition) -> None:
        self.at |= dict.fromkeys(partitions, 10)

    async def position(self, tp: TopicPartition) -> int:
        return self.at[tp]


class Beginnings(Beginning):
    """Has no committed offset, and raises so for one partition at a time, as aiokafka does."""

    def __init__(self, *partitions: TopicPartition) -> None:
        super().__init__(1, {})
        self.left = list(partitions)
        self.requests: list[tuple[TopicPartition, ...]] = []

    def assignment(self) -> set[TopicPartition]:
        return {READ, REPLAYED}

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        if self.left:
            raise NoOffsetForPartitionError(self.left.pop())
        return {}

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.requests.append(partitions)
        await super().seek_to_beginning(*partitions)


async def test_a_new_group_begins_in_all_partitions_at_once() -> None:
    """A request for each would wait for the fetch from the first one."""
    client = Beginnings(READ, REPLAYED)

    assert await consumer()._fetch(client) == {}
    assert [set(request) for request in client.requests] == [{READ, REPLAYED}]


async def test_a_start_without_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The partitions may be another member's by now; else the next fetch reports them again."""
    monkeypatch.setattr(consumer_module, "START_TIMEOUT_SECONDS", 0.05)

    class Silent(Beginnings):
        async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
            await asyncio.Event().wait()

    billing, client = consumer(), Silent(READ)
    async with asyncio.timeout(10):
        assert await billing._fetch(client) == {}

    client.left = [READ]
    monkeypatch.setattr(Silent, "seek_to_beginning", Beginnings.seek_to_beginning)
    assert await billing._fetch(client) == {}
    assert client.requests == [(READ,)]


READ, REPLAYED = TopicPartition(TOPIC, 0), TopicPartition(f"{TOPIC}.billing.replay", 1)


@pytest.mark.parametrize(
    ("reset", "generation", "offsets", "lost", "begun"),
    [
        ("earliest", 1, {}, None, 3),
        ("latest", 1, {}, None, 10),
        ("latest", 2, {}, None, 10),
        # Another member of a new group was quicker.
        ("latest", 1, {REPLAYED: 0}, None, 10),
        ("latest", 2, {REPLAYED: 0}, None, 3),
        ("latest", 1, {}, 1, 3),
        ("latest", 2, {READ: 99}, 99, 3),
    ],
)
async def test_latest_is_the_end_for_a_new_group_only(
    reset: str,
    generation: int,
    offsets: dict[TopicPartition, int],
    lost: int | None,
    begun: int,
) -> None:
    settings = KafkaSettings(kafka_auto_offset_reset=reset, _env_file=None)
    positions = Positions("billing", {TOPIC: TOPIC, REPLAYED.topic: TOPIC}, settings)

    client = Beginning(generation, offsets)
    assert await positions.start(client, {READ: lost}) == {READ: begun}


async def test_what_has_failed_is_read_from_its_beginning() -> None:
    settings = KafkaSettings(kafka_auto_offset_reset="latest", _env_file=None)
    positions = Positions("billing", {TOPIC: TOPIC, REPLAYED.topic: TOPIC}, settings)

    starts = await positions.start(Beginning(1, {}), {REPLAYED: None, READ: None})
    assert starts == {REPLAYED: 3, READ: 10}


async def test_its_own_commits_do_not_make_a_new_group_older() -> None:
    settings = KafkaSettings(kafka_auto_offset_reset="latest", _env_file=None)
    positions = Positions("billing", {TOPIC: TOPIC, REPLAYED.topic: TOPIC}, settings)
    client = Beginning(2, {})

    client.offsets |= await positions.start(client, {REPLAYED: None})
    assert await positions.start(client, {READ: None}) == {READ: 10}


def measured(consumer: str, topic: str) -> float | None:
    labels = {"consumer": consumer, "topic": topic, "partition": "0"}
    return METRICS.get_sample_value("kafka_consumer_lag", labels)


async def test_an_answer_that_is_an_error_is_no_broker_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag, "ASSIGNMENT_INTERVAL_SECONDS", 0.01)
    status, client = ConsumerStatus("idle"), Ends()
    client.error = IllegalStateError("no longer assigned")
    meter = AssignmentLag(status, KafkaSettings(_env_file=None))
    meter.handled({TopicPartition("t", 0): 7})
    async with meter.measuring(client):
        await eventually(lambda: asyncio.sleep(0, client.asked > 2))
        assert status.block_reason is None


def test_an_answering_broker_leaves_the_wait_for_the_database() -> None:
    status = ConsumerStatus("billing")
    status.block("the database is away")
    status.block("Kafka does not answer", BlockSource.BROKER_CHECK)
    status.unblock(BlockSource.BROKER_CHECK)

    assert status.block_reason == "the database is away"
