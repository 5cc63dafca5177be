"""Encoding events as messages, and decoding them: JSON body, CloudEvents headers, upcasting."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from app.platform import tracing
from app.platform.events.event import (
    FIRST_VERSION,
    BaseEvent,
    EventRegistry,
    EventType,
    Payload,
    major_of,
)
from app.platform.kafka.errors import MessageTooLarge, UndecodableMessage
from app.platform.tracing import Trace, trace_from

# The client's own function, which is compiled, because it is called for every message.
_size_of: Callable[..., int] = DefaultRecordBatchBuilder.estimate_size_in_bytes

Header = tracing.Header

# CloudEvents 1.0, Kafka protocol binding, binary content mode.
CE_ID = "ce_id"
CE_TYPE = "ce_type"
CE_SOURCE = "ce_source"
CE_TIME = "ce_time"
CE_SPECVERSION = "ce_specversion"
CE_SUBJECT = "ce_subject"
CE_DATASCHEMA = "ce_dataschema"
CONTENT_TYPE = "content-type"

TRACEPARENT = tracing.TRACEPARENT
TRACESTATE = tracing.TRACESTATE
CORRELATION_ID = "correlation-id"
CAUSATION_ID = "causation-id"

# Headers that a failed message gets for delay topics and the dead letter topic.
ORIGIN_TOPIC = "origin-topic"
ORIGIN_PARTITION = "origin-partition"
ORIGIN_OFFSET = "origin-offset"
ORIGIN_TIMESTAMP = "origin-timestamp"
CONSUMER = "consumer"
ATTEMPTS = "attempts"
FIRST_FAILED_AT = "first-failed-at"
LAST_FAILED_AT = "last-failed-at"
ERROR_TYPE = "error-type"
ERROR_MESSAGE = "error-message"
ERROR_TRACEBACK = "error-traceback"
ATTEMPT_TRACEPARENT = "attempt-traceparent"
DUE_AT = "due-at"
REPLAYED_AT = "replayed-at"
REPLAYS = "replays"

# Headers of a tombstone, which marks another record of a dead letter topic as discarded.
DISCARDS = "discards"
DISCARDS_TIMESTAMP = "discards-timestamp"

# The number of bytes that a dead letter lacks, because they exceeded its topic's limit.
OMITTED_BYTES = "omitted-bytes"

# All headers of a failed message that the service itself writes.
HISTORY = frozenset(
    [
        ORIGIN_TOPIC,
        ORIGIN_PARTITION,
        ORIGIN_OFFSET,
        ORIGIN_TIMESTAMP,
        CONSUMER,
        ATTEMPTS,
        FIRST_FAILED_AT,
        LAST_FAILED_AT,
        ERROR_TYPE,
        ERROR_MESSAGE,
        ERROR_TRACEBACK,
        ATTEMPT_TRACEPARENT,
        REPLAYED_AT,
        REPLAYS,
    ]
)


# All headers that a failed message has while it is away from its own topic.
_ADDED = HISTORY | {DUE_AT, DISCARDS, DISCARDS_TIMESTAMP, OMITTED_BYTES}
_KEPT = "original-"


def keep_originals(headers: Iterable[Header]) -> list[Header]:
    """Rename the sender's headers that are named like those of a failed message."""
    return [(_KEPT + name if _is_added(name) else name, value) for name, value in headers]


def original_headers(headers: Iterable[Header]) -> list[Header]:
    """Return the headers of a failed message as its sender wrote them."""
    return [
        (name.removeprefix(_KEPT) if _is_added(name) else name, value)
        for name, value in headers
        if name not in _ADDED
    ]


def _is_added(name: str) -> bool:
    while name.startswith(_KEPT):
        name = name.removeprefix(_KEPT)
    return name in _ADDED


class Message(NamedTuple):
    """An encoded message for a topic.

    `forwarded` marks one that Kafka accepted before. With the headers of its history, it may exceed the
    limit for new messages.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    forwarded: bool = False

    @property
    def size(self) -> int:
        """An upper bound of the record's size on the wire, in bytes, before compression."""
        return _size_of(self.key, self.value, list(self.headers))


def header(headers: Iterable[Header], name: str) -> str | None:
    """Return the last value of header `name` as text, with invalid UTF-8 replaced, or None."""
    found = None
    for key, value in headers:
        if key == name and value is not None:
            found = value.decode("utf-8", "replace")
    return found


def header_number(headers: Iterable[Header], name: str) -> int:
    """Return header `name` as a number; 0 if it is missing or invalid."""
    value = header(headers, name) or ""
    # Consumers write no longer ones, and int() refuses thousands of digits.
    return int(value) if value.isdecimal() and len(value) <= 18 else 0


def header_time(headers: Iterable[Header], name: str) -> datetime | None:
    """Return header `name` as an aware time; None if it is missing or invalid."""
    try:
        found = datetime.fromisoformat(header(headers, name) or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def with_headers(headers: Iterable[Header], changes: dict[str, str | None]) -> tuple[Header, ...]:
    """Return `headers` with `changes` applied; None removes a header."""
    kept: list[Header] = [(name, value) for name, value in headers if name not in changes]
    added = [
        (name, value.encode("utf-8", "replace"))
        for name, value in changes.items()
        if value is not None
    ]
    return (*kept, *added)


SPECVERSION = "1.0"
JSON = "application/json"


def encode(event: BaseEvent, registry: EventRegistry, trace: Trace) -> Message:
    """Encode `event`, with the headers of `trace` and of the current context of OpenTelemetry.

    Raises LookupError for an event that is not registered.
    """
    entry = registry.entry(type(event))
    message_type = registry.type_of(entry)
    headers: dict[str, str | None] = {
        CE_SPECVERSION: SPECVERSION,
        CE_ID: str(event.event_id),
        CE_TYPE: message_type,
        CE_SOURCE: f"/{registry.service}",
        CE_TIME: event.timestamp.isoformat(),
        CONTENT_TYPE: JSON,
        CORRELATION_ID: trace.correlation_id,
        CAUSATION_ID: trace.causation_id,
        **tracing.carrier_of(),
    }
    if entry.subject is not None and (subject := getattr(event, entry.subject)) is not None:
        headers[CE_SUBJECT] = str(subject)
    if entry.dataschema is not None:
        uri = entry.dataschema.replace("{type}", message_type)
        headers[CE_DATASCHEMA] = uri.replace("{version}", event.version)
    return Message(
        topic=registry.topic(type(event)),
        key=event.key.encode(),
        value=event.model_dump_json().encode(),
        headers=tuple((name, value.encode()) for name, value in headers.items() if value),
    )


def encode_within(
    max_bytes: int, event: BaseEvent, registry: EventRegistry, trace: Trace
) -> Message:
    """Encode `event` for a publisher, whose transaction has to fail if Kafka would refuse the size.

    Raises MessageTooLarge, and LookupError for an event that is not registered.
    """
    message = encode(event, registry, trace)
    if message.size > max_bytes:
        raise MessageTooLarge(
            f"{event.event_type} has {message.size} bytes, more than"
            f" KAFKA_MAX_MESSAGE_BYTES={max_bytes}"
        )
    return message


def decode(topic: str, value: bytes | None, registry: EventRegistry) -> BaseEvent:
    """Decode the event in `value`, and upcast it to the newest version.

    Raises UndecodableMessage for anything else than an event of `topic`: invalid JSON, another type, a
    wrong schema, or an unknown major version.
    """
    events = registry.events_on(topic)
    if events is None:
        raise UndecodableMessage(f"no event is registered for the topic {topic}")
    if (only := events.only) is not None:
        return decode_event(value, only)
    name = type_in_body(value)
    if name not in events.names:
        raise UndecodableMessage(f"the topic {topic} has no event {name}")
    return decode_event(value, events.names[name])


def type_in_body(value: bytes | None) -> str | None:
    """Return the `event_type` in the body; None if it has none. Raises UndecodableMessage."""
    name = parse_body(value).get("event_type")
    return name if isinstance(name, str) else None


def decode_event(value: bytes | None, event_type: EventType) -> BaseEvent:
    """Decode an event of a known type, and upcast it. Raises UndecodableMessage."""
    event = _decode_newest(value, event_type)
    if event is not None:
        return event
    try:
        return decode_payload(parse_body(value), event_type)
    except UndecodableMessage:
        raise
    except Exception as error:
        # An upcaster or a validator failed unexpectedly. Any other exception than UndecodableMessage
        # would block the consumer at this message for ever.
        raise UndecodableMessage(f"{event_type.name}: cannot be read: {error!r}") from error


def decode_payload(payload: Payload, event_type: EventType) -> BaseEvent:
    """Upcast a parsed body, and validate it. Raises UndecodableMessage."""
    payload = _upcast(payload, event_type)
    # Both have defaults for new events; without them a duplicate could not be recognised.
    missing = [name for name in ("event_id", "timestamp") if name not in payload]
    if missing:
        raise UndecodableMessage(f"{event_type.name}: {' and '.join(missing)} missing")
    return validate(payload, event_type)


def validate(payload: Payload, event_type: EventType) -> BaseEvent:
    """Read a parsed body as its bytes would be read. Raises UndecodableMessage."""
    for name, alias in event_type.base_aliases.items():
        if name in payload:
            payload[alias] = payload[name]
    try:
        if event_type.reads_bytes_differently:
            return event_type.read_json(to_json(payload, inf_nan_mode="constants"))
        return event_type.read_parsed(payload)
    except ValidationError as error:
        raise UndecodableMessage(f"{event_type.name}: {_explain(error)}") from error


_REQUIRED = {"event_id", "timestamp", "version"}


def _decode_newest(value: bytes | None, event_type: EventType) -> BaseEvent | None:
    # Nearly all messages are valid and of the newest version: pydantic parses them from the bytes.
    # All others take the slow path, which finds the error.
    if value is None:
        return None
    try:
        event = event_type.read_json(value)
        same = event.version == event_type.version or major_of(event.version) == event_type.major
        newest = same and event.model_fields_set >= _REQUIRED
    except Exception:  # the slow path reports it
        return None
    return event if newest else None


def parse_body(value: bytes | None) -> Payload:
    """Parse a JSON object. Raises UndecodableMessage."""
    if value is None:
        raise UndecodableMessage("the message has no value")
    try:
        # The same parser as the fast path. Python's own accepts lone surrogates, which neither the
        # database nor another message can hold.
        payload = from_json(value)
    except ValueError as error:
        raise UndecodableMessage(f"not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise UndecodableMessage(f"not a JSON object but {type(payload).__name__}")
    return payload


def _upcast(payload: Payload, event_type: EventType) -> Payload:
    major = _major(payload, event_type)
    if major > event_type.major or major not in {*event_type.upcasters, event_type.major}:
        raise UndecodableMessage(
            f"{event_type.name}: version {payload['version']} is unknown;"
            f" the newest known one is {event_type.version}"
        )
    while major < event_type.major:
        before = payload["version"]
        payload = _upcast_once(payload, event_type, major)
        major += 1
        if payload.get("version", before) == before:  # upcasters may ignore the version
            payload = payload | {"version": f"{major}.0.0"}
    return payload


def _upcast_once(payload: Payload, event_type: EventType, major: int) -> Payload:
    try:
        return event_type.upcasters[major](payload)
    except Exception as error:  # a retry would fail in the same way
        raise UndecodableMessage(
            f"{event_type.name}: upcasting from version {major} to {major + 1} failed: {error!r}"
        ) from error


def _major(payload: Payload, event_type: EventType) -> int:
    version = payload.setdefault("version", FIRST_VERSION)
    try:
        return major_of(version)
    except (AttributeError, ValueError):
        raise UndecodableMessage(
            f"{event_type.name}: {version!r} is not a version; use MAJOR.MINOR.PATCH"
        ) from None


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{_path_of(problem['loc'])}: {problem['msg']}" for problem in problems[:5])


def _path_of(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "event"


def trace_of(headers: Iterable[Header], event_id: UUID | None) -> Trace:
    """Return the trace of a message's handler: the same correlation, caused by this event."""
    return trace_from(header(headers, CORRELATION_ID), str(event_id) if event_id else None)
