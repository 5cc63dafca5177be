"""Events to messages and back: JSON body, CloudEvents headers, versions brought up to date."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import from_json

from app.kafka import message as names
from app.kafka.errors import UndecodableMessage
from app.kafka.event import FIRST_VERSION, BaseEvent, EventRegistry, EventType, Payload, major_of
from app.kafka.message import Header, Message, header
from app.tracing import Trace, trace_from

SPECVERSION = "1.0"
JSON = "application/json"


def encode(event: BaseEvent, registry: EventRegistry, trace: Trace) -> Message:
    """The message that carries `event`, with everything that its readers need to follow the story.

    Raises LookupError for an event that is not registered.
    """
    headers: dict[str, str | None] = {
        names.CE_SPECVERSION: SPECVERSION,
        names.CE_ID: str(event.event_id),
        names.CE_TYPE: event.event_type,
        names.CE_SOURCE: f"/{registry.service}",
        names.CE_TIME: event.timestamp.isoformat(),
        names.CONTENT_TYPE: JSON,
        names.CORRELATION_ID: trace.correlation_id,
        names.CAUSATION_ID: trace.causation_id,
        names.TRACEPARENT: trace.traceparent,
    }
    return Message(
        topic=registry.topic(type(event)),
        key=event.key.encode(),
        value=event.model_dump_json().encode(),
        headers=tuple((name, value.encode()) for name, value in headers.items() if value),
    )


def decode(topic: str, value: bytes | None, registry: EventRegistry) -> BaseEvent:
    """The event in `value`, in its newest version.

    Raises UndecodableMessage for anything that is no event of `topic`: not JSON, another type,
    a wrong schema, or a major version that this service does not know.
    """
    event_type = registry.on_topic(topic)
    if event_type is None:
        raise UndecodableMessage(f"no event is registered for the topic {topic}")
    event = _newest(value, event_type)
    if event is not None:
        return event
    try:
        return _decoded(_payload(value), event_type)
    except UndecodableMessage:
        raise
    except Exception as error:
        # An upcaster or a validator that this payload broke in a way of its own: anything else
        # than UndecodableMessage would stop the consumer at this message for ever.
        raise UndecodableMessage(f"{event_type.name}: cannot be read: {error!r}") from error


def _decoded(payload: Payload, event_type: EventType) -> BaseEvent:
    payload = _upcast(payload, event_type)
    # Both have defaults for new events; a message without them cannot be recognised when it comes
    # a second time.
    missing = [name for name in ("event_id", "timestamp") if name not in payload]
    if missing:
        raise UndecodableMessage(f"{event_type.name}: {' and '.join(missing)} missing")
    try:
        return event_type.model.model_validate(payload)
    except ValidationError as error:
        raise UndecodableMessage(f"{event_type.name}: {_explain(error)}") from error


_REQUIRED = {"event_id", "timestamp", "version"}


def _newest(value: bytes | None, event_type: EventType) -> BaseEvent | None:
    # By far the most messages are well formed and of the newest version: pydantic parses those
    # straight from the bytes. All others take the long way, which finds out what is wrong.
    if value is None:
        return None
    try:
        event = event_type.model.model_validate_json(value)
        same = event.version == event_type.version or major_of(event.version) == event_type.major
        newest = same and event.model_fields_set >= _REQUIRED
    except Exception:  # most often a ValidationError; the long way tells
        return None
    return event if newest else None


def _payload(value: bytes | None) -> Payload:
    if value is None:
        raise UndecodableMessage("the message has no value")
    try:
        # The parser of the quick way, so that both take the same: Python's own would take lone
        # surrogates, too, which neither the database nor another message can hold.
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
            f"{event_type.name}: version {payload['version']} is not known here;"
            f" the newest is {event_type.version}"
        )
    while major < event_type.major:
        before = payload["version"]
        payload = _step(payload, event_type, major)
        major += 1
        if payload.get("version", before) == before:  # an upcaster need not mind the version
            payload = payload | {"version": f"{major}.0.0"}
    return payload


def _step(payload: Payload, event_type: EventType, major: int) -> Payload:
    try:
        return event_type.upcasters[major](payload)
    except Exception as error:  # whatever it is, the payload will not change
        raise UndecodableMessage(
            f"{event_type.name}: cannot be brought from version {major} to {major + 1}: {error!r}"
        ) from error


def _major(payload: Payload, event_type: EventType) -> int:
    version = payload.setdefault("version", FIRST_VERSION)
    try:
        return major_of(version)
    except (AttributeError, ValueError):
        raise UndecodableMessage(
            f"{event_type.name}: {version!r} is no version; use MAJOR.MINOR.PATCH"
        ) from None


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems[:5])


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "event"


def trace_of(headers: Iterable[Header], event_id: UUID | None) -> Trace:
    """The trace under which a message's handler works: same story, caused by this event."""
    headers = list(headers)
    return trace_from(
        header(headers, names.CORRELATION_ID),
        header(headers, names.TRACEPARENT),
        str(event_id) if event_id else None,
    )
