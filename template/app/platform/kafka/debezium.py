"""Envelopes of Debezium: the changes of a table's rows, and the events of an outbox."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from json import JSONEncoder
from typing import Any

from pydantic_core import from_json

from app.platform.events.envelope import Description, Envelope, Received
from app.platform.kafka.codec import JSON
from app.platform.kafka.envelopes import Body, Finder, as_object, parse_object

# Of a change's source, what another delivery of the same change may have differently.
_NOT_POSITION = {"version", "connector", "name", "ts_ms", "ts_us", "ts_ns", "snapshot", "sequence"}
_json_of = JSONEncoder().encode


@dataclass(frozen=True)
class DebeziumChanges:
    """Changes of rows. The event's fields are those of a change: op, before, after, source, …

    Debezium delivers a change at least once. The inbox recognises it by its position in the database's
    log, its key and its operation. Rows of a table without a primary key have no key, and may share a
    position, so the inbox recognises those by the message's.
    """

    type: Finder | None = None

    def open(self, message: Received) -> Envelope:
        change = as_object(_without_schema(parse_object(message.value)))
        source = change.get("source")
        if "op" not in change or not isinstance(source, dict):
            raise ValueError("not a change event of Debezium: no op or no source")
        return Envelope(
            change,
            type=None if self.type is None else self.type(change, message),
            id=None if message.key is None else _id(source, change["op"], message.key),
            source=f"debezium:{source.get('name')}",
            time=_time(source),
        )

    def describe(self, type: str) -> Description:
        return Description(JSON, text="A change event of Debezium.")


@dataclass(frozen=True)
class DebeziumOutbox:
    """Events of Debezium's outbox event router, whose headers have the id and the type.

    `type` is the header into which the router puts the type
    (`table.fields.additional.placement=type:header:eventType`). A topic with one event needs none.
    """

    id: str = "id"
    type: str = "eventType"

    def open(self, message: Received) -> Envelope:
        headers = {name: value for name, value in message.headers if value is not None}
        event_id = _unquoted(headers.get(self.id))
        if not event_id:
            raise ValueError(f"no header {self.id}, which the outbox event router writes")
        body, problem = _payload(message.value)
        type_ = _unquoted(headers.get(self.type))
        return Envelope(body, type_, event_id, problem=problem)

    def describe(self, type: str) -> Description:
        headers = {self.id: {"type": "string"}, self.type: {"type": "string", "const": type}}
        return Description(
            JSON,
            {"type": "object", "properties": headers, "required": [self.id]},
            "An event of Debezium's outbox event router.",
        )


def _id(source: Body, op: Any, key: bytes) -> str:
    """Return the position, `op` and `key` as a list in JSON, exactly as `json.dumps` writes it.

    The inbox has ids that were made of that text. Here it takes half the time, of which `json.dumps`
    needs most to begin.
    """
    position = ", ".join(
        [f"{name}: {_value(source[field])}" for field, name in _position_fields(tuple(source))]
    )
    return "[{" + position + "}, " + _value(op) + ', "' + key.hex() + '"]'


def _value(value: Any) -> str:
    """Return `value` in JSON. Most are texts, which the encoder has a short way for, or numbers."""
    return str(value) if type(value) is int else _json_of(value)


@lru_cache(maxsize=1024)
def _position_fields(fields: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return those of a source's fields that are its position, in order, each also in JSON."""
    return [(field, _json_of(field)) for field in sorted({*fields} - _NOT_POSITION)]


def _payload(value: bytes) -> tuple[Any, str | None]:
    """Return the payload, or why there is none. Converters put it into a string, or beside a schema."""
    if value[:1] == b"{" and b'"schema"' not in value:
        return value, None
    try:
        found = from_json(value)
        if isinstance(found, dict):
            found = _without_schema(found)
        return (from_json(found) if isinstance(found, str) else found), None
    except ValueError as error:
        return None, f"not JSON: {error}"


def _without_schema(body: Body) -> Any:
    return body["payload"] if body.keys() == {"schema", "payload"} else body


def _unquoted(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = value.decode()
    # As a JSON converter for headers writes it.
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _time(source: Body) -> datetime | None:
    milliseconds = source.get("ts_ms")
    if not isinstance(milliseconds, int) or milliseconds <= 0:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
