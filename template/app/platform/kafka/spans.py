"""Spans of messages that are created and sent, named as OpenTelemetry's conventions for messaging say.

The context of a message's `create` span is in its `traceparent`, which nothing changes on the way.
Attributes are built only for spans that are made.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from aiokafka import ConsumerRecord
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, get_current_span

from app.platform import tracing
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.kafka.codec import (
    ATTEMPT_TRACEPARENT,
    TRACEPARENT,
    TRACESTATE,
    Message,
    header,
    with_headers,
)
from app.platform.kafka.errors import SendError
from app.platform.tracing import Header

# As many as the SDK keeps by default.
MAX_LINKS = 128
_KEY_BYTES = 200

Attributes = dict[str, str | int | bool]

# In all versions of `traceparent`, the last digit of the flags, in which the lowest bit counts.
_FLAGS_AT = 54
_SAMPLED = frozenset(b"13579bdf")


def sampling_of(headers: Sequence[Header]) -> bool | None:
    """Return whether a message is of a sampled trace; None if it is of no trace.

    It is called for every message while tracing is on, so it does not parse.
    """
    for name, value in reversed(headers):
        if name == TRACEPARENT and value is not None:
            return value[_FLAGS_AT] in _SAMPLED if len(value) > _FLAGS_AT else None
    return None


def attributes_of(operation: str, topic: str | None = None, name: str | None = None) -> Attributes:
    """Return the attributes of an operation, whose `name` is by default that of its type."""
    found: Attributes = {
        "messaging.system": "kafka",
        "messaging.operation.name": name or operation,
        "messaging.operation.type": operation,
    }
    return found if topic is None else {**found, "messaging.destination.name": topic}


def place_attributes(record: ConsumerRecord) -> Attributes:
    return {
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
    }


def content_attributes(key: bytes | None, value: bytes | None) -> Attributes:
    """Return the attributes that tell a message's key, and whether it is a tombstone."""
    found: Attributes = {}
    if key is not None:
        found["messaging.kafka.message.key"] = key[:_KEY_BYTES].decode("utf-8", "replace")
    if value is None:
        found["messaging.kafka.message.tombstone"] = True
    return found


def links_to(contexts: Iterable[Context]) -> list[Link]:
    """Return the links to the first ones of `contexts`."""
    links: list[Link] = []
    for context in contexts:
        if len(links) == MAX_LINKS:
            break
        if (link := tracing.link_of(context)) is not None:
            links.append(link)
    return links


# Creating and sending


def creating(event: BaseEvent, registry: EventRegistry) -> AbstractContextManager[object]:
    """Return the span of a message's creation, in which `event` has to be encoded."""
    if not tracing.is_on() or tracing.is_unsampled():
        return nullcontext()
    topic = registry.topic(type(event))

    def attributes() -> Attributes:
        content = content_attributes(event.key.encode(), b"")
        id = {"messaging.message.id": str(event.event_id)}
        return {**attributes_of("create", topic), **content, **id}

    return tracing.span(f"create {topic}", SpanKind.PRODUCER, attributes=attributes)


class Sending:
    """The spans of messages on their way, from the hand-over to the acknowledgement."""

    def __init__(self, spans: Mapping[int, Span]) -> None:
        self._spans = spans  # by the message's index

    def record(self, outcomes: Sequence[SendError | None]) -> None:
        """Record the outcome of each message."""
        for index, span in self._spans.items():
            if (error := outcomes[index]) is not None:
                tracing.fail_span(span, error)

    def __enter__(self) -> "Sending":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for span in self._spans.values():
            if error is not None:
                tracing.fail_span(span, error)
            span.end()


_UNTRACED = Sending({})


def sending(messages: Sequence[Message]) -> Sending:
    """Begin a span for each sampled one of `messages`; they end with the block."""
    if not tracing.is_on():
        return _UNTRACED
    spans: dict[int, Span] = {}
    for index, message in enumerate(messages):
        headers = _headers_of_sender(message)
        if sampling_of(headers) and (span := _begin_send(message, headers)) is not None:
            spans[index] = span
    return Sending(spans) if spans else _UNTRACED


def _headers_of_sender(message: Message) -> Sequence[Header]:
    """Return headers with the context of what sends the message: its creation, or a failed attempt."""
    if message.forwarded and (attempt := header(message.headers, ATTEMPT_TRACEPARENT)) is not None:
        return _headers_of_attempt(message.headers, attempt)
    return message.headers


def _headers_of_attempt(headers: Iterable[Header], attempt: str) -> list[Header]:
    state = [(name, value) for name, value in headers if name == TRACESTATE]
    return [*state, (TRACEPARENT, attempt.encode())]


def _begin_send(message: Message, headers: Sequence[Header]) -> Span | None:
    parent = tracing.context_of(headers)
    if not tracing.is_sampled(parent):  # it is malformed
        return None

    def attributes() -> Attributes:
        content = content_attributes(message.key, message.value)
        return {**attributes_of("send", message.topic), **content}

    return tracing.begin_span(
        f"send {message.topic}",
        SpanKind.CLIENT,
        parent=parent,
        links=_links_to_work(parent),
        attributes=attributes,
    )


def _links_to_work(parent: Context) -> list[Link]:
    """Return a link to the work in progress, such as a relay's batch, if that is in another trace."""
    work = get_current_span()
    of_message = get_current_span(parent).get_span_context()
    if not work.is_recording() or work.get_span_context().trace_id == of_message.trace_id:
        return []
    return [Link(work.get_span_context())]


def batch_span(name: str, messages: Iterable[Sequence[Header]]) -> AbstractContextManager[object]:
    """Return the span of work on many messages, given by their headers, with links to the sampled ones.

    It is a root. Without a sampled message there is none, nor any in the block.
    """
    if not tracing.is_on():
        return nullcontext()
    links = links_to(tracing.context_of(headers) for headers in messages if sampling_of(headers))
    return tracing.span(name, parent=Context(), links=links) if links else tracing.unsampled()


# Attempts


def links_to_attempt(headers: Iterable[Header]) -> list[Link]:
    """Return the link to the attempt before, as the headers of a failed message name it."""
    headers = list(headers)
    attempt = header(headers, ATTEMPT_TRACEPARENT)
    if attempt is None:
        return []
    return links_to([tracing.context_of(_headers_of_attempt(headers, attempt))])


def resending(operation: str, letter: ConsumerRecord) -> AbstractContextManager[object]:
    """Return the span in which an operator's command sends what it makes of a dead letter."""

    def attributes() -> Attributes:
        content = content_attributes(letter.key, letter.value)
        return {
            **attributes_of("send", letter.topic, operation),
            **content,
            **place_attributes(letter),
        }

    return tracing.span(
        f"{operation} {letter.topic}",
        SpanKind.PRODUCER,
        parent=tracing.context_of(letter.headers),
        links=links_to_attempt(letter.headers),
        attributes=attributes,
    )


def as_attempt(message: Message) -> Message:
    """Return `message` with the current span as the attempt to which the next one links."""
    if not get_current_span().is_recording():
        return message
    attempt = {ATTEMPT_TRACEPARENT: tracing.traceparent_of()}
    return message._replace(headers=with_headers(message.headers, attempt))
