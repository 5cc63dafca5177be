"""The spans of a consumer: attempts, batches, failures, and what is published meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    format_span_id,
    format_trace_id,
    get_current_span,
)
from samples import REGISTRY, TOPIC, FakeUnits, MeterRead, body, meter_read, record
from spans import Spans, id_of, linked, place
from structlog.testing import capture_logs

from app.platform import tracing
from app.platform.database.errors import DatabaseUnavailable
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import BaseEvent
from app.platform.kafka import codec as names
from app.platform.kafka.codec import Message, encode, header, with_headers
from app.platform.kafka.consumer_spans import ConsumerSpans
from app.platform.kafka.delivery import Delivery
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.offsets import OffsetTracker
from app.platform.kafka.processing import Processor
from app.platform.kafka.retry import replay_message
from app.platform.kafka.spans import MAX_LINKS, creating, links_to
from app.platform.kafka.status import ConsumerStatus
from app.platform.kafka.subscription import RetryPolicy, Subscription
from app.platform.kafka.topics import source_topics

DELAYED = f"{TOPIC}.billing.retry.5s"
DLQ = f"{TOPIC}.billing.dlq"
STATE = "vendor=value"


class Publisher:
    """A publisher into a list."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def publish(self, event: BaseEvent) -> None:
        with creating(event, REGISTRY):
            self.messages.append(encode(event, REGISTRY, tracing.current()))


class Units(FakeUnits):
    """Units of work that publish into a list, and fail at their commit if told so."""

    def __init__(self) -> None:
        super().__init__()
        self.publisher = Publisher()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[UnitOfWork]:
        async with super().begin() as uow:
            yield UnitOfWork(uow.session, self.publisher)


class Billing:
    """A consumer whose handler does `work`, with an inbox and a producer in memory."""

    def __init__(self, work: Callable[..., Awaitable[None]], *, batch: bool = False) -> None:
        retry = RetryPolicy(attempts=2, initial=0, maximum=0, retry_after=[timedelta(seconds=5)])
        subscription = Subscription("billing", {MeterRead: work}, retry=retry, batch=batch)
        self.producer, self.units = FakeProducer(), Units()
        self._processor = Processor(
            subscription,
            REGISTRY,
            source_topics(subscription, REGISTRY),
            self.units,  # type: ignore[arg-type]  # a fake in its place
            self.producer,
            ConsumerStatus("billing"),
            "shop.billing",
        )

    async def process(self, *records: ConsumerRecord) -> None:
        batch: dict[TopicPartition, list[ConsumerRecord]] = {}
        for each in records:
            batch.setdefault(TopicPartition(each.topic, each.partition), []).append(each)
        async with asyncio.timeout(10):
            await self._processor.process(batch, OffsetTracker(batch))

    @property
    def published(self) -> list[Message]:
        return self.units.publisher.messages


def traceparent(number: int, flags: str = "01") -> str:
    """The context of the creation of message `number`: trace and span have its number."""
    return f"00-{number:032x}-{number:016x}-{flags}"


def sent(number: int, flags: str | None = "01", event: MeterRead | None = None) -> ConsumerRecord:
    """Message `number` as another service has sent it."""
    event = event or meter_read(f"m-{number}", number)
    headers: list[names.Header] = [(names.CE_ID, str(event.event_id).encode())]
    headers += [(names.CORRELATION_ID, f"story-{number}".encode())]
    if flags is not None:
        context = traceparent(number, flags)
        headers += [(names.TRACESTATE, STATE.encode()), (names.TRACEPARENT, context.encode())]
    return record(body(event), event.key.encode(), offset=number, headers=headers)


def fetched(message: Message, offset: int = 90) -> ConsumerRecord:
    """Return `message` as it arrives."""
    return record(
        message.value, message.key, topic=message.topic, offset=offset, headers=message.headers
    )


async def succeed(event: MeterRead, uow: UnitOfWork) -> None: ...


async def publish_next(event: MeterRead, uow: UnitOfWork) -> None:
    await uow.events.publish(meter_read(event.meter_id, event.count + 100))


def failing(times: int, error: Exception | None = None) -> Callable[..., Awaitable[None]]:
    """Return a handler whose first calls fail."""
    left = times

    async def handle(event: MeterRead, uow: UnitOfWork) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error or ValueError("broken")

    return handle


def attempts(spans: Spans) -> list[ReadableSpan]:
    return [span for span in spans.finished() if span.name == f"process {TOPIC}"]


async def test_an_attempt_is_a_child_of_the_messages_creation(spans: Spans) -> None:
    event = meter_read("m-1")
    await Billing(succeed).process(sent(1, event=event))

    attempt = spans.named(f"process {TOPIC}")
    assert place(attempt) == (1, 1)
    assert attempt.kind is SpanKind.CONSUMER
    assert attempt.status.status_code is StatusCode.UNSET
    assert dict(attempt.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": TOPIC,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 1,
        "messaging.kafka.message.key": "m-1",
        "messaging.message.id": str(event.event_id),
        "messaging.consumer.group.name": "shop.billing",
        "app.consumer": "billing",
        "app.correlation_id": "story-1",
        "app.causation_id": str(event.event_id),
    }


async def test_what_a_handler_publishes_is_a_child_of_its_attempt(spans: Spans) -> None:
    billing = Billing(publish_next)
    await billing.process(sent(1))

    created = spans.named(f"create {TOPIC}")
    assert place(created) == (1, id_of(spans.named(f"process {TOPIC}")))
    (message,) = billing.published
    assert header(message.headers, "traceparent") == f"00-{1:032x}-{id_of(created):016x}-01"
    assert header(message.headers, "tracestate") == STATE


async def test_the_vendors_state_is_in_every_span(spans: Spans) -> None:
    await Billing(publish_next).process(sent(1), sent(2))
    states = {
        span.context.trace_state.to_header()
        for span in spans.finished()
        if span.context is not None and span.context.trace_id in (1, 2)
    }
    assert states == {STATE}


async def test_a_batch_has_a_span_with_links_to_its_messages(spans: Spans) -> None:
    await Billing(succeed).process(sent(1), sent(2, "00"), sent(3))

    batch, received = spans.named("process batch billing"), spans.named("receive billing")
    assert linked(batch) == linked(received) == [1, 3]
    assert (batch.kind, received.kind) == (SpanKind.CONSUMER, SpanKind.CLIENT)
    assert received.parent is None
    assert place(batch)[1] == id_of(received)
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert batch.attributes["messaging.destination.name"] == TOPIC
    assert [place(attempt) for attempt in attempts(spans)] == [(1, 1), (3, 3)]
    assert [linked(attempt) for attempt in attempts(spans)] == [[id_of(batch)]] * 2


async def test_a_batch_has_a_limited_number_of_links(spans: Spans) -> None:
    contexts = [tracing.context_of(sent(n).headers) for n in range(1, MAX_LINKS + 10)]
    assert len(links_to(contexts)) == MAX_LINKS
    await Billing(succeed).process(*(sent(n) for n in range(1, MAX_LINKS + 10)))

    assert len(spans.named("process batch billing").links) == MAX_LINKS
    assert len(attempts(spans)) == MAX_LINKS + 9


@pytest.mark.parametrize("count", [1, 3])
async def test_unsampled_messages_make_no_span(spans: Spans, count: int) -> None:
    billing = Billing(publish_next)
    await billing.process(*(sent(n, "00") for n in range(1, count + 1)))

    assert spans.names() == []
    contexts = [header(m.headers, "traceparent") or "" for m in billing.published]
    assert [context[:36] for context in contexts] == [
        traceparent(n)[:36] for n in range(1, count + 1)
    ]
    assert {context[-2:] for context in contexts} == {"00"}


async def test_work_on_unsampled_messages_is_in_no_trace(spans: Spans) -> None:
    """It has a context that begins no trace, whatever the handler calls."""
    seen = []

    async def look(events: Sequence[MeterRead], uow: UnitOfWork) -> None:
        context = get_current_span().get_span_context()
        seen.append((context.is_valid, context.trace_flags.sampled))

    await Billing(look, batch=True).process(sent(1, "00"), sent(2, "00"))
    assert (seen, spans.names()) == ([(True, False)], [])


async def test_a_message_without_a_trace_begins_one(spans: Spans) -> None:
    billing = Billing(publish_next)
    await billing.process(sent(1, None), sent(2, None))

    first, second = attempts(spans)
    assert first.parent is second.parent is None
    assert place(first)[0] != place(second)[0]
    created = [span for span in spans.finished() if span.name.startswith("create")]
    assert [place(span)[1] for span in created] == [id_of(first), id_of(second)]


async def test_a_retry_in_place_links_to_the_attempt_before(spans: Spans) -> None:
    await Billing(failing(1)).process(sent(1))

    first, second = attempts(spans)
    assert [place(span) for span in (first, second)] == [(1, 1)] * 2
    assert (linked(first), linked(second)) == ([], [id_of(first)])
    assert (first.status.status_code, second.status.status_code) == (
        StatusCode.ERROR,
        StatusCode.UNSET,
    )
    assert first.attributes is not None
    assert first.attributes["error.type"] == "ValueError"


async def test_lines_of_a_failure_lead_to_its_attempt(spans: Spans) -> None:
    with capture_logs() as logs:
        await Billing(failing(2)).process(sent(1))

    first, second = [
        format_span_id(span.context.span_id) for span in attempts(spans) if span.context
    ]
    lines = [line for line in logs if line["log_level"] == "warning"]
    assert [(line["event"], line["span_id"]) for line in lines] == [
        ("handling failed", first),
        ("handling failed", second),
        ("message delayed", second),
    ]
    assert {line["trace_id"] for line in lines} == {format_trace_id(1)}


async def test_an_attempt_alone_links_to_that_of_the_batch(spans: Spans) -> None:
    await Billing(failing(1)).process(sent(1), sent(2))

    batch = spans.named("process batch billing")
    in_batch, first, second = attempts(spans)
    assert batch.status.status_code is in_batch.status.status_code is StatusCode.ERROR
    assert [place(span)[0] for span in (in_batch, first, second)] == [1, 1, 2]
    assert linked(first) == [id_of(in_batch)]
    assert linked(second) == []


async def test_each_wait_for_the_database_is_an_attempt(spans: Spans) -> None:
    billing = Billing(succeed)
    billing.units.failures = [DatabaseUnavailable("away")]
    await billing.process(sent(1))

    first, second = attempts(spans)
    assert first.status.status_code is StatusCode.ERROR
    assert linked(second) == [id_of(first)]


async def test_a_delayed_message_links_to_the_attempt_before(spans: Spans) -> None:
    billing = Billing(failing(2))
    await billing.process(sent(1))
    (delayed,) = billing.producer.on(DELAYED)
    failed = attempts(spans)[-1]
    await billing.process(fetched(delayed))

    assert header(delayed.headers, "traceparent") == traceparent(1)
    assert header(delayed.headers, "attempt-traceparent") == f"00-{1:032x}-{id_of(failed):016x}-01"
    sending = spans.named(f"send {DELAYED}")
    assert place(sending) == (1, id_of(failed))
    last = attempts(spans)[-1]
    assert place(last) == (1, 1)
    assert linked(last) == [id_of(failed)]
    assert last.attributes is not None
    assert last.attributes["messaging.destination.name"] == DELAYED


async def test_a_dead_letter_names_the_attempt_before(spans: Spans) -> None:
    billing = Billing(failing(9, PermanentError("never")))
    await billing.process(sent(1))

    (letter,) = billing.producer.on(DLQ)
    failed = spans.named(f"process {TOPIC}")
    assert place(spans.named(f"send {DLQ}")) == (1, id_of(failed))
    again = fetched(replay_message(fetched(letter)))
    await billing.process(again)
    last = attempts(spans)[-1]
    assert linked(last) == [id_of(failed)]
    (second,) = billing.producer.on(DLQ)[1:]
    assert header(second.headers, "attempt-traceparent") == f"00-{1:032x}-{id_of(last):016x}-01"


async def test_an_undecodable_message_is_a_failed_attempt(spans: Spans) -> None:
    billing = Billing(succeed)
    await billing.process(record(b"{", headers=sent(1).headers))

    attempt = spans.named(f"process {TOPIC}")
    assert place(attempt) == (1, 1)
    assert attempt.status.status_code is StatusCode.ERROR
    assert place(spans.named(f"send {DLQ}")) == (1, id_of(attempt))


async def test_a_senders_own_header_is_no_attempt(spans: Spans) -> None:
    """On its own topic a message has not failed, whatever its sender wrote."""
    message = sent(1)
    message.headers = (*message.headers, ("attempt-traceparent", traceparent(7).encode()))
    billing = Billing(failing(2))
    await billing.process(message)

    assert linked(attempts(spans)[0]) == []
    (delayed,) = billing.producer.on(DELAYED)
    assert header(delayed.headers, "original-attempt-traceparent") == traceparent(7)


async def test_a_batch_handlers_messages_each_have_an_attempt(spans: Spans) -> None:
    async def publish_all(events: Sequence[MeterRead], uow: UnitOfWork) -> None:
        for event in events:
            with tracing.caused_by(event.event_id):
                await uow.events.publish(meter_read(event.meter_id, event.count))

    billing = Billing(publish_all, batch=True)
    await billing.process(sent(1), sent(2, "00"), sent(3))

    batch = spans.named("process batch billing")
    assert [(place(span), linked(span)) for span in attempts(spans)] == [
        ((1, 1), [id_of(batch)]),
        ((3, 3), [id_of(batch)]),
    ]
    created = [span for span in spans.finished() if span.name.startswith("create")]
    assert [place(span)[1] for span in created] == [id_of(span) for span in attempts(spans)]
    context = header(billing.published[1].headers, "traceparent") or ""
    assert (context[:36], context[-2:]) == (traceparent(2)[:36], "00")


async def test_a_failing_batch_handler_fails_each_attempt(spans: Spans) -> None:
    handle = failing(1)
    await Billing(handle, batch=True).process(sent(1), sent(2))

    codes = [span.status.status_code for span in attempts(spans)]
    assert codes == [StatusCode.ERROR] * 2 + [StatusCode.UNSET] * 2
    assert [linked(span)[-1:] for span in attempts(spans)[2:]] == [
        [id_of(span)] for span in attempts(spans)[:2]
    ]


def test_events_of_one_id_have_an_attempt_each(spans: Spans) -> None:
    """As two sources may give it, which the inbox tells apart."""
    event = meter_read()
    records = [sent(1, event=event), sent(2, event=event)]
    own = ConsumerSpans("billing", None, {TOPIC: TOPIC})
    with own.fetch(records, None), own.handling([Delivery(r, event, uuid4()) for r in records]):
        assert attempts(spans) == []
    assert [place(span) for span in attempts(spans)] == [(1, 1), (2, 2)]


async def test_an_attempt_in_a_batch_repeats_nothing(spans: Spans) -> None:
    """The span of the batch has the consumer's group, and that of the creation the key."""

    async def handle(events: Sequence[MeterRead], uow: UnitOfWork) -> None: ...

    event = meter_read("m-1")
    await Billing(handle, batch=True).process(sent(1, event=event), sent(2, "00"))

    assert dict(spans.named(f"process {TOPIC}").attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": TOPIC,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 1,
        "messaging.message.id": str(event.event_id),
        "app.consumer": "billing",
        "app.correlation_id": "story-1",
    }
    batch = spans.named("process batch billing")
    assert (batch.attributes or {})["messaging.consumer.group.name"] == "shop.billing"


def delivered(*records: ConsumerRecord) -> list[Delivery]:
    return [Delivery(each, meter_read(), uuid4()) for each in records]


def test_handlers_of_one_transaction_attempt_their_own_messages(spans: Spans) -> None:
    records = [sent(number) for number in range(1, 5)]
    deliveries = delivered(*records)
    own = ConsumerSpans("billing", None, {TOPIC: TOPIC})
    with own.fetch(records, None), own.transaction(deliveries):
        with own.handling(deliveries[:2]):
            assert attempts(spans) == []
        assert [place(span) for span in attempts(spans)] == [(1, 1), (2, 2)]
        with own.handling(deliveries[2:]):
            pass
    assert [place(span) for span in attempts(spans)] == [(n, n) for n in range(1, 5)]


def test_a_batch_of_several_topics_names_none(spans: Spans) -> None:
    headers = sent(2).headers
    records = [sent(1), record(body(meter_read()), topic=DELAYED, headers=headers)]
    own = ConsumerSpans("billing", None, {TOPIC: TOPIC, DELAYED: TOPIC})
    lane = delivered(records[0], records[0])
    with own.fetch(records, None):
        with own.transaction(delivered(*records)):
            pass
        with own.transaction(lane):
            pass

    batches = [*[spans.named("receive billing")], *spans.finished()[1:]]
    topics = [(batch.attributes or {}).get("messaging.destination.name") for batch in batches]
    assert topics == [None, None, TOPIC]


@pytest.mark.parametrize("malformed", ["", "00-no-context-01", "x" * 54 + "1"])
async def test_a_malformed_context_begins_a_trace(spans: Spans, malformed: str) -> None:
    message = sent(1)
    message.headers = tuple(with_headers(message.headers, {"traceparent": malformed}))
    await Billing(succeed).process(message)
    assert [span.parent for span in attempts(spans)] == [None]


async def test_without_tracing_the_context_passes_through() -> None:
    billing = Billing(publish_next)
    await billing.process(sent(1), sent(2, "00"), sent(3, None))

    contexts = [header(m.headers, "traceparent") for m in billing.published]
    assert contexts == [traceparent(1), traceparent(2, "00"), None]
    assert header(billing.published[0].headers, "tracestate") == STATE


async def test_without_tracing_a_failed_message_names_no_attempt() -> None:
    billing = Billing(failing(9, PermanentError("never")))
    await billing.process(sent(1))
    (letter,) = billing.producer.on(DLQ)
    assert header(letter.headers, "attempt-traceparent") is None
    assert header(letter.headers, "traceparent") == traceparent(1)
