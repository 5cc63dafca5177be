"""Envelopes of others: CloudEvents in any system's messages, and JSON without an envelope."""

from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from pydantic_core import from_json

from app.platform.events.envelope import Description, Envelope, Received
from app.platform.kafka.codec import CONTENT_TYPE, JSON

Body = dict[str, Any]
Finder = Callable[[Body, Received], str]
Number = Callable[[Body, Received], int | str]

_JSON = JSON.encode()
_STRUCTURED = b"application/cloudevents"
_BATCH = b"application/cloudevents-batch"
_SPECVERSION = b"1.0"
_ATTRIBUTES = ("ce_id", "ce_source", "ce_type")


def parse_object(value: bytes | str) -> Body:
    """Parse a JSON object. Raises ValueError."""
    try:
        found = from_json(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return as_object(found)


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
        get = headers.get
        content_type, version = get(CONTENT_TYPE), get("ce_specversion")
        problem = None
        if content_type != _JSON:
            content_type = (content_type or b"").strip().lower()
            if not version or content_type.startswith(_STRUCTURED):
                if content_type.startswith(_BATCH):
                    raise ValueError("CloudEvents in batched mode: send each event as a message")
                return _structured(message.value)
            problem = _problem_of(content_type)
        id, source, type_, time = get("ce_id"), get("ce_source"), get("ce_type"), get("ce_time")
        if version != _SPECVERSION or not (id and source and type_):
            raise ValueError(_what_is_wrong(headers))
        return Envelope(
            message.value or {},  # an event may have no data
            type_.decode(),
            id.decode(),
            source.decode(),
            time.decode() if time else None,
            problem=problem,
        )

    def describe(self, type: str) -> Description:
        text = {"type": "string", "minLength": 1}
        needed = {"ce_specversion": {"type": "string", "const": "1.0"}, "ce_id": text}
        needed |= {"ce_source": text, "ce_type": {"type": "string", "const": type}}
        also = {"ce_time": {"type": "string", "format": "date-time"}}
        return Description(
            JSON,
            {"type": "object", "properties": needed | also, "required": list(needed)},
            "A CloudEvent in binary mode. In structured mode the payload is its `data`.",
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
    try:
        event = parse_object(value)
    except ValueError as error:
        raise ValueError(f"not a CloudEvent in binary mode, and the body is {error}") from error
    get = event.get
    id, source, type_ = get("id"), get("source"), get("type")
    texts = isinstance(id, str) and isinstance(source, str) and isinstance(type_, str)
    if get("specversion") != "1.0" or not (texts and id and source and type_):
        raise ValueError(_what_is_wrong_inside(event))
    data, content_type = get("data"), get("datacontenttype")
    if "data_base64" in event:
        data = b64decode(event["data_base64"], validate=True)
    problem = None
    if content_type is not None and content_type != JSON:
        problem = _problem_of(str(content_type).encode())
    body = {} if data is None else data
    return Envelope(body, type_, id, source, get("time"), problem=problem)


def _what_is_wrong_inside(event: Body) -> str:
    version = event.get("specversion")
    if version is None:
        return "not a CloudEvent: no header ce_specversion, no specversion in the body"
    if version != _SPECVERSION.decode():
        return f"CloudEvents {version} is not {_SPECVERSION.decode()}"
    missing = [name for name in ("id", "source", "type") if not _is_text(event.get(name))]
    return f"not a CloudEvent: no {' and no '.join(missing)} in the body"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _problem_of(content_type: bytes | None) -> str | None:
    """Return why data of this type cannot be read; None for JSON, which it is by default."""
    if not content_type or content_type == _JSON:
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

    def describe(self, type: str) -> Description:
        return Description(JSON)
