"""The way of a batch through the processor, with an inbox and a producer in memory."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from prometheus_client import REGISTRY as METRICS
from samples import REGISTRY, TOPIC, FakeUnits, MeterRead, body, meter_read, record
from structlog.testing import capture_logs

from app.platform import tracing
from app.platform.database.errors import MAX_TRANSACTION_ATTEMPTS, DatabaseUnavailable
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka import codec as names
from app.platform.kafka import metrics
from app.platform.kafka.codec import header, header_time
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.offsets import OffsetTracker
from app.platform.kafka.processing import Processor
from app.platform.kafka.status import ConsumerStatus
from app.platform.kafka.subscription import Handler, OverloadPolicy, RetryPolicy, Subscription
from app.platform.kafka.topics import source_topics
from app.platform.tracing import Trace

PARTITION = TopicPartition(TOPIC, 0)
DLQ = f"{TOPIC}.billing.dlq"
QUICK = RetryPolicy(attempts=3, initial=0, maximum=0)
# Opens only for a window that no test but those of the breaker fills.
TOLERANT = OverloadPolicy(window=1000)


class World:
    """A processor of the subscription `billing` and everything that it works with."""

    def __init__(
        self,
        handler: Handler,
        *,
        retry: RetryPolicy = QUICK,
        overload: OverloadPolicy = TOLERANT,
        concurrency: int = 1,
        batch: bool = False,
    ) -> None:
        subscription = Subscription(
            "billing",
            {MeterRead: handler},
            retry=retry,
            overload=overload,
            concurrency=concurrency,
            batch=batch,
        )
        self.units = FakeUnits()
        self.producer = FakeProducer()
        self.status = ConsumerStatus("billing")
        self.processor = Processor(
            subscription,
            REGISTRY,
            source_topics(subscription, REGISTRY),
            self.units,  # type: ignore[arg-type]  # a fake in its place
            self.producer,
            self.status,
        )

    async def process(self, *records: ConsumerRecord) -> OffsetTracker:
        batch: dict[TopicPartition, list[ConsumerRecord]] = {}
        for r in records:
            batch.setdefault(TopicPartition(r.topic, r.partition), []).append(r)
        tracker = OffsetTracker(batch)
        async with asyncio.timeout(10):
            await self.processor.process(batch, tracker)
        return tracker

    @property
    def dead(self) -> list[str | None]:
        """The error types of what was dead-lettered."""
        return [header(m.headers, names.ERROR_TYPE) for m in self.producer.on(DLQ)]


async def apply(event: MeterRead, uow: UnitOfWork) -> None:
    uow.session.effects.append(event.count)  # type: ignore[attr-defined]  # the fake session's


def failing_for(wrong: Callable[[MeterRead], bool], error: Exception) -> Handler:
    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        await apply(event, uow)
        if wrong(event):
            raise error

    return handle


def records(*events: MeterRead) -> list[ConsumerRecord]:
    return [record(body(e), e.key.encode(), offset=offset) for offset, e in enumerate(events)]


def numbered(count: int) -> list[ConsumerRecord]:
    return records(*(meter_read(f"m-{n % 3}", n) for n in range(count)))


async def test_a_batch_is_one_transaction() -> None:
    world = World(apply)
    tracker = await world.process(*numbered(5))

    assert world.units.effects == [0, 1, 2, 3, 4]
    assert world.units.transactions == 1
    assert tracker.committable() == {PARTITION: 5}


async def test_what_was_applied_before_changes_nothing() -> None:
    world = World(apply)
    batch = numbered(3)
    await world.process(*batch)
    tracker = await world.process(*batch)

    assert world.units.effects == [0, 1, 2]
    assert tracker.complete


async def test_an_event_twice_in_one_batch_is_applied_once() -> None:
    world = World(apply)
    event = meter_read(count=7)
    tracker = await world.process(*records(event, event))

    assert world.units.effects == [7]
    assert tracker.complete


async def test_a_batch_handler_takes_the_new_events_at_once() -> None:
    calls: list[list[int]] = []

    async def handle(events: list[MeterRead], uow: UnitOfWork) -> None:
        calls.append([event.count for event in events])

    world = World(handle, batch=True)
    await world.process(*numbered(4))

    assert calls == [[0, 1, 2, 3]]


async def test_one_bad_message_leaves_the_others_applied_once() -> None:
    world = World(failing_for(lambda event: event.count == 2, ValueError("broken")))
    tracker = await world.process(*numbered(5))

    assert world.units.effects == [0, 1, 3, 4]
    assert world.dead == ["ValueError"]
    assert header(world.producer.on(DLQ)[0].headers, names.ATTEMPTS) == "3"
    assert tracker.complete


async def test_a_handler_that_fails_twice_is_tried_a_third_time() -> None:
    failures = [ValueError("once"), ValueError("twice")]

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        await apply(event, uow)
        if failures:
            raise failures.pop()

    world = World(handle)
    await world.process(*numbered(1))

    assert world.units.effects == [0]
    assert world.dead == []


@pytest.mark.parametrize(
    ("error", "policy"),
    [
        (PermanentError("never"), QUICK),
        (KeyError("never"), RetryPolicy(attempts=3, initial=0, permanent=(KeyError,))),
    ],
)
async def test_a_permanent_error_is_not_tried_again(error: Exception, policy: RetryPolicy) -> None:
    world = World(failing_for(lambda _: True, error), retry=policy)
    await world.process(*numbered(1))

    assert world.dead == [type(error).__name__]
    assert world.units.transactions == 1


async def test_an_exhausted_message_is_delayed_and_then_dead_lettered() -> None:
    policy = RetryPolicy(attempts=2, initial=0, retry_after=[timedelta(seconds=5)])
    world = World(failing_for(lambda _: True, ValueError("broken")), retry=policy)
    await world.process(*numbered(1))

    (waiting,) = world.producer.on(f"{TOPIC}.billing.retry.5s")
    await world.process(
        record(waiting.value, waiting.key, topic=waiting.topic, headers=waiting.headers)
    )

    (dead,) = world.producer.on(DLQ)
    assert header(dead.headers, names.ATTEMPTS) == "3"
    assert header(dead.headers, names.ORIGIN_TOPIC) == TOPIC


ODD_HEADERS: list[tuple[str, bytes | None]] = [
    ("null", None),
    ("bytes", b"\xff\xfe"),
    (names.ATTEMPTS, b"9" * 5000),
    (names.DUE_AT, b"9999-12-31T23:59:59+00:00"),
    (names.CORRELATION_ID, b"\xff\n"),
    (names.TRACEPARENT, None),
]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"count": NaN}',
        json.dumps({"version": "9" * 5000 + ".0.0"}).encode(),
        b'{"meter_id": "\\ud800"}',
    ],
)
async def test_poison_of_any_kind_is_dead_lettered_with_its_bytes(
    value: bytes | None,
) -> None:
    world = World(apply)
    poison = record(value, b"\xff", offset=3, headers=ODD_HEADERS)
    tracker = await world.process(*numbered(3), poison)

    assert world.units.effects == [0, 1, 2]
    (dead,) = world.producer.on(DLQ)
    assert (dead.key, dead.value) == (b"\xff", value)
    assert ("null", None) in dead.headers
    assert ("bytes", b"\xff\xfe") in dead.headers
    assert header(dead.headers, names.ATTEMPTS) == "1"
    assert tracker.complete


async def test_odd_headers_do_not_keep_a_good_event_from_being_applied() -> None:
    world = World(apply)
    tracker = await world.process(record(body(meter_read(count=4)), headers=ODD_HEADERS))

    assert world.units.effects == [4]
    assert tracker.complete


async def test_an_error_beyond_utf_8_is_dead_lettered_nevertheless() -> None:
    world = World(failing_for(lambda _: True, PermanentError("\ud800 broken")))
    await world.process(*numbered(1))

    (dead,) = world.producer.on(DLQ)
    assert header(dead.headers, names.ERROR_MESSAGE) == "? broken"


async def test_a_handler_that_awaits_a_cancelled_task_has_failed() -> None:
    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        await apply(event, uow)
        if event.count == 1:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled

    world = World(handle)
    tracker = await world.process(*numbered(3))

    assert world.units.effects == [0, 2]
    assert world.dead == ["HandlerCancelled"]
    assert tracker.complete


async def test_a_handler_that_is_cancelled_from_outside_has_not_failed() -> None:
    begun = asyncio.Event()

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        begun.set()
        await asyncio.Event().wait()

    world = World(handle)
    working = asyncio.create_task(world.process(*numbered(3)))
    await begun.wait()
    working.cancel()

    await asyncio.wait({working}, timeout=5)
    assert working.cancelled()
    assert world.dead == []


@pytest.mark.parametrize("delays", [[], [timedelta(seconds=5)]])
async def test_a_message_that_is_too_large_to_be_sent_on_stops_nobody(
    delays: list[timedelta],
) -> None:
    policy = RetryPolicy(attempts=1, retry_after=delays)
    world = World(failing_for(lambda event: event.count == 1, ValueError("broken")), retry=policy)
    large = record(body(meter_read(count=1)) + b" " * 2_500_000, offset=1)
    tracker = await world.process(large, record(body(meter_read(count=7)), offset=2))

    assert world.units.effects == [7]
    (dead,) = world.producer.on(DLQ)
    assert dead.value == b""
    assert header(dead.headers, names.OMITTED_BYTES) == str(len(large.value))
    assert header(dead.headers, names.ORIGIN_OFFSET) == "1"
    assert header(dead.headers, names.ERROR_TYPE) == "ValueError"
    assert tracker.complete


async def test_an_absent_database_is_waited_for_and_counts_no_attempt() -> None:
    world = World(apply, retry=RetryPolicy(attempts=1))
    world.units.failures = [DatabaseUnavailable("away"), DatabaseUnavailable("away")]
    tracker = await world.process(*numbered(1))

    assert world.units.effects == [0]
    assert world.dead == []
    assert world.status.block_reason is None
    assert tracker.complete


@pytest.mark.parametrize("error", [asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError])
async def test_a_limit_of_the_server_counts_no_attempt(
    error: type[Exception],
) -> None:
    world = World(apply, retry=RetryPolicy(attempts=1))
    world.units.failures = [error("of the server"), error("of the server")]
    await world.process(*numbered(2))

    assert world.units.effects == [0, 1]
    assert world.dead == []


async def test_a_deadlock_is_retried_at_once_and_then_waited_for() -> None:
    world = World(apply, retry=RetryPolicy(attempts=1))
    waits = metrics.infrastructure_waits.labels("billing")
    before = waits._value.get()
    world.units.failures = [asyncpg.DeadlockDetectedError("40P01")] * (MAX_TRANSACTION_ATTEMPTS - 1)
    await world.process(*numbered(1))
    assert waits._value.get() == before

    world.units.failures = [asyncpg.DeadlockDetectedError("40P01")] * MAX_TRANSACTION_ATTEMPTS
    await world.process(*numbered(1))
    assert waits._value.get() == before + 1
    assert world.dead == []


async def test_a_message_waits_until_its_dead_letter_is_confirmed() -> None:
    world = World(failing_for(lambda _: True, PermanentError("never")))
    world.producer.available = False
    asyncio.get_running_loop().call_later(0.2, world.status.draining.set)
    tracker = await world.process(*numbered(1))

    assert tracker.committable() == {}
    assert world.status.block_reason is not None
    assert "BrokerUnavailable" in world.status.block_reason


async def test_nothing_begins_once_the_consumer_drains() -> None:
    world = World(apply)
    world.status.draining.set()
    tracker = await world.process(*numbered(3))

    assert world.units.transactions == 0
    assert tracker.committable() == {}
    assert tracker.first_undone() == {PARTITION: 0}


async def test_lanes_keep_the_order_of_each_key() -> None:
    seen: dict[str, list[int]] = {}

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        await asyncio.sleep(0)
        seen.setdefault(event.meter_id, []).append(event.count)

    world = World(handle, concurrency=3)
    tracker = await world.process(*numbered(30))

    assert world.units.transactions > 1
    assert all(counts == sorted(counts) for counts in seen.values())
    assert sum(map(len, seen.values())) == 30
    assert tracker.complete


SENSITIVE = OverloadPolicy(window=3, probe_initial=0, probe_maximum=0, probes=4)


async def test_overload_does_not_empty_a_topic_into_dead_letters() -> None:
    world = World(
        failing_for(lambda _: True, ValueError("broken")),
        overload=OverloadPolicy(window=3, probe_initial=30),
    )
    asyncio.get_running_loop().call_later(0.3, world.status.draining.set)
    tracker = await world.process(*numbered(20))

    assert len(world.dead) == 2
    assert world.status.overload is not None
    assert "100% of the last 3 messages failed" in world.status.overload
    assert tracker.committable() == {PARTITION: 2}


async def test_a_probe_that_passes_resumes_the_subscription() -> None:
    broken = [True]

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        if event.count == 2 and world.status.overload is not None:
            broken.clear()  # mended while it was probed
        if broken:
            raise ValueError("broken")
        await apply(event, uow)

    world = World(handle, overload=SENSITIVE)
    tracker = await world.process(*numbered(6))

    assert world.status.overload is None
    assert len(world.dead) == 2
    assert world.units.effects == [2, 3, 4, 5]
    assert tracker.complete


async def test_messages_applied_together_count_one_by_one_for_overload() -> None:
    overload = OverloadPolicy(window=10, probe_initial=0, probe_maximum=0)
    world = World(failing_for(lambda e: e.count >= 10, ValueError("broken")), overload=overload)
    await world.process(*numbered(15)[:10])
    assert world.status.overload is None
    await world.process(*numbered(15)[10:])

    assert world.status.overload is not None
    assert "50% of the last 10 messages failed" in world.status.overload


async def test_a_message_that_fails_all_its_probes_is_given_up() -> None:
    world = World(failing_for(lambda _: True, ValueError("broken")), overload=SENSITIVE)
    tracker = await world.process(*numbered(4))

    assert len(world.dead) == 4
    assert tracker.complete


# Its probes would outlast any test.
STRICT = OverloadPolicy(window=3, probe_initial=600, probe_maximum=600)


async def test_undecodable_messages_hold_nobody_back() -> None:
    world = World(apply, overload=STRICT)
    before = counted("kafka_messages_undecodable_total")
    bad = [record(b"no", offset=n) for n in range(60)]
    tracker = await world.process(*bad, record(body(meter_read()), offset=60))

    assert world.status.overload is None
    assert len(world.dead) == 60
    assert world.units.effects == [1]
    assert tracker.complete
    assert counted("kafka_messages_undecodable_total") - before == 60


async def test_permanent_errors_hold_nobody_back() -> None:
    world = World(failing_for(lambda e: e.count < 30, PermanentError("never")), overload=STRICT)
    tracker = await world.process(*numbered(31))

    assert world.status.overload is None
    assert len(world.dead) == 30
    assert world.units.effects == [30]
    assert tracker.complete


async def test_a_permanent_error_of_a_probe_is_no_reason_for_another() -> None:
    probes = 0

    def wrong(event: MeterRead) -> bool:
        nonlocal probes
        if world.status.overload is not None and event.count == 2:
            probes += 1
            raise PermanentError("never")
        return event.count < 3

    world = World(failing_for(wrong, ValueError("broken")), overload=SENSITIVE)
    tracker = await world.process(*numbered(5))

    assert probes == 1
    assert world.dead == ["ValueError", "ValueError", "PermanentError"]
    assert world.status.overload is None, "the message after it passed"
    assert tracker.complete


async def test_tombstones_are_skipped_and_counted() -> None:
    world = World(apply, overload=STRICT)
    before = counted("kafka_tombstones_skipped_total")
    nulls = [record(None, offset=n) for n in range(60)]
    tracker = await world.process(*nulls, record(body(meter_read()), offset=60))

    assert world.dead == []
    assert world.units.effects == [1]
    assert tracker.committable() == {PARTITION: 61}
    assert counted("kafka_tombstones_skipped_total") - before == 60


def counted(name: str) -> float:
    return METRICS.get_sample_value(name, {"consumer": "billing", "topic": TOPIC}) or 0


STORY: tuple[tuple[str, bytes | None], ...] = (
    (names.CORRELATION_ID, b"story-1"),
    (names.CE_ID, b"7"),
)


async def test_a_dead_letter_is_logged_with_ids_and_traceback() -> None:
    world = World(failing_for(lambda event: True, ValueError("thirteen")))
    event = meter_read()
    with capture_logs() as logs:
        await world.process(record(body(event), headers=STORY))

    attempts = [line for line in logs if line["event"] == "handling failed"]
    (given_up,) = [line for line in logs if line["event"] == "message dead-lettered"]
    assert len(attempts) == 3
    for line in [*attempts, given_up]:
        assert line["correlation_id"] == "story-1"
        assert line["event_id"] == str(event.event_id)
    assert [line["attempt"] for line in [*attempts, given_up]] == [1, 2, 3, 3]
    assert not any("exc_info" in line for line in attempts)
    assert str(given_up["exc_info"]) == "thirteen"


async def test_lines_of_a_failure_lead_to_its_sender() -> None:
    """Without ids in the headers, as in the messages of others, the event's id stands for them."""
    world = World(failing_for(lambda event: True, ValueError("thirteen")))
    event, parent = meter_read(), b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    with capture_logs() as logs:
        await world.process(record(body(event), headers=[(names.TRACEPARENT, parent)]))

    lines = [line for line in logs if line["log_level"] in {"warning", "error"}]
    assert len(lines) == 4
    for line in lines:
        assert line["event_id"] == line["correlation_id"] == str(event.event_id)
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert line["span_id"] == "b7ad6b7169203331"


async def test_a_letter_has_the_time_of_its_first_failure() -> None:
    times: list[datetime] = []

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        times.append(datetime.now(UTC))
        raise ValueError("broken")

    world = World(handle)
    await world.process(record(body(meter_read())))
    (letter,) = world.producer.on(DLQ)
    first = header_time(letter.headers, names.FIRST_FAILED_AT)
    last = header_time(letter.headers, names.LAST_FAILED_AT)

    assert first
    assert last
    assert times[0] <= first <= times[1] < times[2] <= last


async def test_a_permanent_error_is_logged_once_without_a_traceback() -> None:
    world = World(failing_for(lambda event: True, PermanentError("never")))
    with capture_logs() as logs:
        await world.process(record(body(meter_read())), record(b"no event", offset=1))

    warnings = [line for line in logs if line["log_level"] in {"warning", "error"}]
    assert [line["event"] for line in warnings] == ["message dead-lettered"] * 2
    assert not any("exc_info" in line for line in warnings)


class Stories:
    """A batch handler that notes under which trace it works, for the batch and for each event."""

    def __init__(self) -> None:
        self.batch: list[Trace] = []
        self.events: list[Trace] = []

    async def __call__(self, events: Sequence[MeterRead], _uow: UnitOfWork) -> None:
        self.batch.append(tracing.current())
        for event in events:
            with tracing.caused_by(event.event_id):
                self.events.append(tracing.current())


def event_record(number: int) -> ConsumerRecord:
    event = meter_read("m-1", number)
    story = (names.CORRELATION_ID, b"story-%d" % number)
    return record(body(event), offset=number, headers=[story])


async def test_a_batch_handler_works_for_each_event_in_its_story() -> None:
    stories = Stories()
    batch = [event_record(number) for number in range(3)]
    await World(stories, batch=True).process(*batch)

    assert [trace.correlation_id for trace in stories.events] == ["story-0", "story-1", "story-2"]
    ids = [json.loads(r.value or b"")["event_id"] for r in batch]
    assert [trace.causation_id for trace in stories.events] == ids
    (whole,) = stories.batch
    assert whole.causation_id is None
    assert not whole.correlation_id.startswith("story")


async def test_a_batch_of_one_is_that_events_story() -> None:
    stories = Stories()
    await World(stories, batch=True).process(event_record(5))

    assert [trace.correlation_id for trace in stories.batch] == ["story-5"]


async def test_outside_of_a_batch_caused_by_names_the_event() -> None:
    event = meter_read()
    with tracing.bind_trace(Trace("story")), tracing.caused_by(event.event_id) as trace:
        assert trace.correlation_id == "story"
        assert trace.causation_id == str(event.event_id)
