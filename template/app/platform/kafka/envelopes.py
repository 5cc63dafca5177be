"""Envelopes of others: CloudEvents in any system's messages, and JSON without an envelope."""

from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from pydantic_core import from_json

from app.platform.events.envelope import Envelope, Received
from app.platform.kafka.codec import CONTENT_TYPE

Body = dict[str, Any]
Finder = Callable[[Body, Received], str]
Number = Callable[[Body, Received], int | str]

_STRUCTURED = b"application/cloudevents"
_BATCH = b"application/cloudevents-batch"
_SPECVERSION = b"1.0"
_ATTRIBUTES = ("ce_id", "ce_source", "ce_type")


def parse_object(value: bytes | str) -> Body:
    """Parse a JSON object. Raises ValueError."""
    return as_object(from_json(value))


def as_object(found: Any) -> Body:
    """Return parsed JSON if it is an object. Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object but {type(found).__name__}")
    return found


@dataclass(frozen=True)
class CloudEvents:
    """CloudEvents 1.0 with JSON data, in binary or structured mode.

    The inbox recognises an event by its source and its id, as the specification says.
    """

    def open(self, message: Received) -> Envelope:
        headers = dict(message.headers)  # of several with one name, the last one counts
        content_type = headers.get(CONTENT_TYPE)
        if content_type != b"application/json":
            content_type = (content_type or b"").strip().lower()
            if content_type.startswith(_BATCH):
                raise ValueError("CloudEvents in batched mode: send each event as a message")
            if content_type.startswith(_STRUCTURED) or not headers.get("ce_specversion"):
                return _structured(message.value)
        id, source, type_ = headers.get("ce_id"), headers.get("ce_source"), headers.get("ce_type")
        if not (id and source and type_) or headers.get("ce_specversion") != _SPECVERSION:
            raise ValueError(_what_is_wrong(headers))
        time = headers.get("ce_time")
        return Envelope(
            message.value or {},  # an event may have no data
            type_.decode(),
            id.decode(),
            source.decode(),
            None if time is None else time.decode(),
            problem=_problem_of(content_type),
        )


def is_binary(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    """Return whether `headers` have all that a CloudEvent in binary mode needs."""
    found = dict(headers)
    return all(found.get(name) for name in ("ce_specversion", *_ATTRIBUTES))


def _what_is_wrong(headers: Mapping[str, bytes | None]) -> str:
    version = headers.get("ce_specversion")
    if not version:
        return "not a CloudEvent: no header ce_specversion, and not in structured mode"
    if version != _SPECVERSION:
        return f"CloudEvents {version.decode('utf-8', 'replace')} is not {_SPECVERSION.decode()}"
    missing = [name for name in _ATTRIBUTES if not headers.get(name)]
    return f"not a CloudEvent: no {' and no '.join(missing)} among the headers"


def _structured(value: bytes) -> Envelope:
    event = parse_object(value)
    version = event.get("specversion")
    if version is None:
        raise ValueError("not a CloudEvent: no header ce_specversion, no specversion in the body")
    if version != _SPECVERSION.decode():
        raise ValueError(f"CloudEvents {version} is not {_SPECVERSION.decode()}")
    for name in ("id", "source", "type"):
        if not event.get(name) or not isinstance(event[name], str):
            raise ValueError(f"not a CloudEvent: no {name} in the body")
    data = event.get("data")
    if "data_base64" in event:
        data = b64decode(event["data_base64"], validate=True)
    return Envelope(
        {} if data is None else data,
        event["type"],
        event["id"],
        event["source"],
        event.get("time"),
        problem=_problem_of(str(event.get("datacontenttype") or "").encode()),
    )


def _problem_of(content_type: bytes | None) -> str | None:
    """Return why data of this type cannot be read; None for JSON, which it is by default."""
    if not content_type or content_type == b"application/json":
        return None
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type.endswith((b"/json", b"+json")):
        return None
    name = media_type.decode("utf-8", "replace")
    return f"the data is {name}, not JSON: use a decoder of your own"


def _text(id: int | str) -> str:
    return str(id) if type(id) is int else cast(str, id)


@dataclass(frozen=True)
class PlainJson:
    """JSON objects without an envelope.

    The functions take the parsed body and the message. Without `id`, the inbox recognises a message by
    its position and time; without `type`, the topic has one event; without `time`, that of the record
    counts.
    """

    id: Number | None = None
    type: Finder | None = None
    time: Callable[[Body, Received], str | datetime] | None = None

    def open(self, message: Received) -> Envelope:
        if self.id is self.type is self.time is None:
            return Envelope(message.value)
        body = parse_object(message.value)
        return Envelope(
            body,
            type=None if self.type is None else self.type(body, message),
            id=None if self.id is None else _text(self.id(body, message)),
            time=None if self.time is None else self.time(body, message),
        )
