"""The spans of messages that are created, sent, relayed and replayed."""

import asyncio
from collections.abc import Sequence

import pytest
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from samples import REGISTRY, TOPIC, meter_read, record
from spans import Spans, id_of, linked, place
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform import tracing
from app.platform.database.commit_outcome import CommitTracker
from app.platform.kafka import codec as names
from app.platform.kafka.codec import Header, Message, header
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.publisher import DirectPublisher
from app.platform.kafka.retry import discard_tombstone, replay_message
from app.platform.kafka.spans import as_attempt, batch_span, creating, resending, sending
from app.platform.tracing import Trace

DLQ = f"{TOPIC}.billing.dlq"
REPLAY = f"{TOPIC}.billing.replay"
STATE = ("tracestate", b"vendor=value")


def traceparent(trace_id: int, span_id: int, flags: str = "01") -> tuple[str, bytes]:
    return "traceparent", f"00-{trace_id:032x}-{span_id:016x}-{flags}".encode()


def message(trace_id: int, flags: str = "01", *more: Header) -> Message:
    return Message(TOPIC, b"m-1", b"{}", (STATE, traceparent(trace_id, trace_id, flags), *more))


def publisher(producer: FakeProducer) -> DirectPublisher:
    return DirectPublisher(producer, REGISTRY, 0, 1_000_000, CommitTracker(AsyncSession()))


async def test_a_published_event_is_created_and_sent(spans: Spans) -> None:
    producer, event = FakeProducer(), meter_read("m-1")
    own = publisher(producer)
    with tracing.bind_trace(Trace("story")), tracing.span("request"):
        await own.publish(event)
        await own.after_commit()

    created, sent = spans.named(f"create {TOPIC}"), spans.named(f"send {TOPIC}")
    request = spans.named("request")
    assert place(created)[1] == id_of(request)
    assert place(sent)[1] == id_of(created)
    assert (created.kind, sent.kind, sent.links) == (SpanKind.PRODUCER, SpanKind.CLIENT, ())
    (published,) = producer.sent
    trace_id = place(created)[0]
    context = dict(published.headers)["traceparent"] or b""
    assert context[:52] == traceparent(trace_id, id_of(created))[1][:52]
    assert dict(created.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": TOPIC,
        "messaging.kafka.message.key": "m-1",
        "messaging.message.id": str(event.event_id),
        "app.correlation_id": "story",
    }


async def test_an_event_of_an_unsampled_request_is_unsampled(spans: Spans) -> None:
    producer = FakeProducer()
    own = publisher(producer)
    with tracing.span("request", parent=tracing.context_of([traceparent(1, 1, "00"), STATE])):
        await own.publish(meter_read())
        await own.after_commit()

    assert spans.names() == []
    (published,) = producer.sent
    assert header(published.headers, "traceparent") == traceparent(1, 1, "00")[1].decode()
    assert header(published.headers, "tracestate") == "vendor=value"


async def test_a_send_lasts_until_its_acknowledgement(spans: Spans) -> None:
    with sending([message(1), message(2, "00"), Message(TOPIC, b"m-1", b"{}")]):
        assert spans.names() == []
    sent = spans.named(f"send {TOPIC}")
    assert place(sent) == (1, 1)
    assert sent.context is not None
    assert sent.context.trace_state.to_header() == "vendor=value"


async def test_a_refused_message_fails_its_span_only(spans: Spans) -> None:
    producer = FakeProducer(topics=[TOPIC])
    other = message(2)._replace(topic="elsewhere")
    await producer.send_all([message(1), other])

    assert spans.named(f"send {TOPIC}").status.status_code is StatusCode.UNSET
    failed = spans.named("send elsewhere")
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "UnknownTopic"


async def test_a_cancelled_send_is_a_failed_one(spans: Spans) -> None:
    with pytest.raises(asyncio.CancelledError), sending([message(1)]):
        raise asyncio.CancelledError
    assert spans.named(f"send {TOPIC}").status.status_code is StatusCode.ERROR


async def test_a_failed_message_is_sent_by_its_attempt(spans: Spans) -> None:
    attempt = ("attempt-traceparent", traceparent(1, 9)[1])
    await FakeProducer().send(message(1, "01", attempt)._replace(forwarded=True))

    sent = spans.named(f"send {TOPIC}")
    assert place(sent) == (1, 9)
    assert sent.context is not None
    assert sent.context.trace_state.to_header() == "vendor=value"


async def test_a_new_message_is_not_sent_by_an_attempt(spans: Spans) -> None:
    attempt = ("attempt-traceparent", traceparent(1, 9)[1])
    await FakeProducer().send(message(1, "01", attempt))
    assert place(spans.named(f"send {TOPIC}")) == (1, 1)


@pytest.mark.parametrize("value", [b"", b"00", b"x" * 54 + b"1", b"\xff" * 55, None])
async def test_a_message_with_a_wrong_context_is_sent_untraced(
    spans: Spans, value: bytes | None
) -> None:
    await FakeProducer().send(Message(TOPIC, b"m-1", b"{}", (("traceparent", value),)))
    assert spans.names() == []


async def test_the_context_of_a_later_version_is_read(spans: Spans) -> None:
    later = f"cc-{1:032x}-{1:016x}-01-more".encode()
    await FakeProducer().send(Message(TOPIC, b"m-1", b"{}", (("traceparent", later),)))
    assert place(spans.named(f"send {TOPIC}")) == (1, 1)


async def test_a_batch_that_is_relayed_links_to_its_sampled_messages(spans: Spans) -> None:
    messages = [message(1), message(2, "00"), message(3)]
    with (
        tracing.span("something else"),
        batch_span("relay batch", (each.headers for each in messages)),
    ):
        await FakeProducer().send_all(messages)

    batch = spans.named("relay batch")
    assert (batch.parent, linked(batch)) == (None, [1, 3])
    sent = [span for span in spans.finished() if span.name == f"send {TOPIC}"]
    assert [(place(span), linked(span)) for span in sent] == [
        ((1, 1), [id_of(batch)]),
        ((3, 3), [id_of(batch)]),
    ]


def test_a_batch_without_sampled_messages_is_in_no_trace(spans: Spans) -> None:
    batch: Sequence[Message] = [message(1, "00"), Message(TOPIC, b"m-1", b"{}")]
    with batch_span("relay batch", (each.headers for each in batch)):
        context = get_current_span().get_span_context()
        assert (context.is_valid, context.trace_flags.sampled) == (True, False)
    assert spans.names() == []


def letter(flags: str = "01", attempt: int | None = 9) -> Message:
    headers: list[Header] = [STATE, traceparent(1, 1, flags)]
    headers += [(names.ORIGIN_TOPIC, TOPIC.encode()), (names.CONSUMER, b"billing")]
    if attempt is not None:
        headers.append(("attempt-traceparent", traceparent(1, attempt)[1]))
    return Message(DLQ, b"m-1", b"{}", tuple(headers), forwarded=True)


async def test_a_replay_links_to_the_attempt_before(spans: Spans) -> None:
    producer = FakeProducer()
    read = record(topic=DLQ, headers=letter().headers)
    with resending("replay", read):
        await producer.send(as_attempt(replay_message(read)))

    replay, sent = spans.named(f"replay {DLQ}"), spans.named(f"send {REPLAY}")
    assert (place(replay), linked(replay)) == ((1, 1), [9])
    assert place(sent) == (1, id_of(replay))
    (again,) = producer.sent
    assert dict(again.headers)["traceparent"] == traceparent(1, 1)[1]
    assert dict(again.headers)["attempt-traceparent"] == traceparent(1, id_of(replay))[1]
    assert (replay.attributes or {})["messaging.destination.name"] == DLQ


async def test_an_unsampled_letter_is_replayed_untraced(spans: Spans) -> None:
    producer = FakeProducer()
    read = record(topic=DLQ, headers=letter("00", None).headers)
    with resending("replay", read):
        await producer.send(as_attempt(replay_message(read)))

    assert spans.names() == []
    assert "attempt-traceparent" not in dict(producer.sent[0].headers)


async def test_a_discarded_letter_ends_its_trace(spans: Spans) -> None:
    read = record(topic=DLQ, headers=letter().headers)
    with resending("discard", read):
        await FakeProducer().send(discard_tombstone(read))

    discard = spans.named(f"discard {DLQ}")
    assert (place(discard), linked(discard), spans.names()) == ((1, 1), [9], [f"discard {DLQ}"])


async def test_without_tracing_nothing_is_built() -> None:
    event, producer = meter_read(), FakeProducer()
    read = record(topic=DLQ, headers=letter().headers)
    with creating(event, REGISTRY), batch_span("relay batch", iter([read.headers])):
        with resending("replay", read):
            await producer.send(as_attempt(replay_message(read)))
        assert not get_current_span().get_span_context().is_valid
    assert dict(producer.sent[0].headers)["attempt-traceparent"] == traceparent(1, 9)[1]
