"""From the bytes of a message to its event: the one place that knows how a topic's messages are read."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from aiokafka import ConsumerRecord
from pydantic_core import to_json

from app.platform.events.envelope import (
    Decoder,
    Envelope,
    Received,
    event_id_of,
    message_id,
    position_id,
)
from app.platform.events.event import BaseEvent, EventRegistry, EventType, Tombstone, TopicEvents
from app.platform.kafka import codec as names
from app.platform.kafka.codec import (
    CE_TYPE,
    decode_event,
    decode_payload,
    header,
    header_number,
    original_headers,
    parse_body,
    type_in_body,
    validate,
)
from app.platform.kafka.envelopes import CloudEvents, is_binary
from app.platform.kafka.errors import UndecodableMessage
from app.platform.kafka.topics import failure_topic

# Pydantic reads a larger number as milliseconds.
_MOST_SECONDS = 20_000_000_000


class Decoded(NamedTuple):
    """An event, and the id by which the inbox recognises its message."""

    event: BaseEvent | Tombstone[Any]
    id: UUID


class EventDecoder:
    """Decodes the messages of a consumer, which handles the events `wanted`; None means all.

    It handles the tombstones on the topics of the events `tombstones`. Raises ValueError for two of
    one topic, where a tombstone does not say which event it deletes.
    """

    def __init__(
        self,
        registry: EventRegistry,
        wanted: Collection[type[BaseEvent]] | None = None,
        tombstones: Collection[type[BaseEvent]] = (),
    ) -> None:
        self._tombstones = {registry.topic(model): model for model in tombstones}
        if len(self._tombstones) < len(tombstones):
            raise ValueError("two handlers of tombstones share a topic: keep one of them")
        self._registry = registry
        self._wanted = wanted

    def decode(self, record: ConsumerRecord, origin: str) -> Decoded | None:
        """Decode a message that came from the topic `origin`; return None if its type is not wanted.

        Raises UndecodableMessage.
        """
        events = _events_on(origin, self._registry)
        has_failed = record.topic != origin
        if record.value is None and not self._is_event(record, events):
            return self._decode_tombstone(record, events, has_failed)
        decoder = events.decoder
        if decoder is not None:
            return self._decode_foreign(received(record, origin), events, decoder, has_failed)
        named = (events.only, None) if events.declared is None else _type_of(record, events)
        event_type = self._wanted_type(*named, has_failed)
        if event_type is None:
            return None
        event = decode_event(record.value, event_type)
        return Decoded(event, event.event_id)

    def decode_received(self, message: Received) -> Decoded | None:
        """Decode a message of a topic with a decoder, as if it came from that topic."""
        events = _events_on(message.topic, self._registry)
        assert events.decoder is not None
        return self._decode_foreign(message, events, events.decoder, has_failed=False)

    def reads_own_format(self, topic: str) -> bool:
        """Return whether messages of `topic` are in this service's format."""
        events = self._registry.events_on(topic)
        return events is None or events.decoder is None

    def is_tombstone(self, record: ConsumerRecord, origin: str) -> bool:
        """Return whether a message has no value, and is no event without data."""
        events = self._registry.events_on(origin)
        return record.value is None and not (events and self._is_event(record, events))

    def origin(self, record: ConsumerRecord) -> str:
        """Return the topic that a message first came from: of a failed one, not its failure topic."""
        failures = failure_topic(record.topic)
        if failures is None or self._registry.events_on(record.topic) is not None:
            return str(record.topic)
        return header(record.headers, names.ORIGIN_TOPIC) or failures.origin

    def identify(self, record: ConsumerRecord, origin: str) -> UUID | None:
        """Return the id that the inbox would have, of a topic with a decoder; None if it has none."""
        events = self._registry.events_on(origin)
        message = received(record, origin)
        if self.is_tombstone(record, origin):
            return position_id(message)
        if events is None or events.decoder is None:
            return None
        try:
            event_id, mask = event_id_of(message, events.decoder.open(message))
            return message_id(UUID(event_id), mask)
        except Exception:  # the decoder cannot read it, so no consumer has applied it
            return None

    def _is_event(self, record: ConsumerRecord, events: TopicEvents) -> bool:
        """Return whether a message without a value is an event without data, not a tombstone."""
        keeps_keys = events.declared is not None and events.declared.compacted
        if keeps_keys or events.name in self._tombstones:
            return False
        return isinstance(events.decoder, CloudEvents) and is_binary(record.headers)

    def _decode_tombstone(
        self, record: ConsumerRecord, events: TopicEvents, has_failed: bool
    ) -> Decoded | None:
        model = self._tombstones.get(events.name)
        if self._wanted is None:
            model = next(iter(events.types.values())).model
        if model is None and has_failed:
            raise UndecodableMessage("tombstones have no handler in this consumer any more")
        if model is None:
            return None
        message = received(record, events.name)
        if message.key is None:
            raise UndecodableMessage("a message with neither key nor value deletes nothing")
        try:
            key = message.key_text()
        except ValueError as error:
            raise UndecodableMessage(f"the key of a tombstone is no text: {error}") from error
        id = position_id(message)
        return Decoded(Tombstone(model, key, id, _time_of(message.timestamp)), id)

    def _decode_foreign(
        self, message: Received, events: TopicEvents, decoder: Decoder, has_failed: bool
    ) -> Decoded | None:
        try:
            envelope = decoder.open(message)
            type_ = envelope.type
            found = events.only if type_ is None else events.types.get(type_)
            if found is None or (self._wanted is not None and found.model not in self._wanted):
                if type_ is None and events.only is None:
                    raise UndecodableMessage(f"{_name(decoder)}: the message has no type")
                self._wanted_type(found, type_, has_failed)
                return None
            event_id, mask = event_id_of(message, envelope)
            event = build_event(found, envelope, event_id, message.timestamp)
            return Decoded(event, message_id(event.event_id, mask))
        except UndecodableMessage:
            raise
        except Exception as error:
            # Any other exception than UndecodableMessage would block the consumer at this message.
            raise _unreadable(decoder, error) from error

    def _wanted_type(
        self, found: EventType | None, name: str | None, has_failed: bool
    ) -> EventType | None:
        if found is not None and (self._wanted is None or found.model in self._wanted):
            return found
        if has_failed:  # when it still had a handler: to skip it would lose it
            name = name if found is None else found.name
            raise UndecodableMessage(f"the type {name} has no handler in this consumer any more")
        return None


def received(record: ConsumerRecord, origin: str) -> Received:
    """Return the message of `record` as its sender wrote it to `origin`."""
    if record.topic == origin:
        return Received(
            origin,
            record.partition,
            record.offset,
            max(record.timestamp or 0, 0),  # -1 is none; headers have 0 for it
            record.key,
            record.value or b"",
            record.headers,
        )
    return Received(
        origin,
        header_number(record.headers, names.ORIGIN_PARTITION),
        header_number(record.headers, names.ORIGIN_OFFSET),
        header_number(record.headers, names.ORIGIN_TIMESTAMP),
        record.key,
        record.value or b"",
        original_headers(record.headers),
    )


def _events_on(topic: str, registry: EventRegistry) -> TopicEvents:
    events = registry.events_on(topic)
    if events is None:
        raise UndecodableMessage(f"no event is registered for the topic {topic}")
    return events


def _unreadable(decoder: Decoder, error: Exception) -> UndecodableMessage:
    text = str(error) if isinstance(error, ValueError) else repr(error)
    return UndecodableMessage(f"{_name(decoder)}: {text}")


def _name(decoder: Decoder) -> str:
    return type(decoder).__name__


def _type_of(record: ConsumerRecord, events: TopicEvents) -> tuple[EventType | None, str | None]:
    """Return the event type by the header or else by the body, if it is registered, and its name."""
    name = header(record.headers, CE_TYPE)
    if name is not None and (found := events.types.get(name)) is not None:
        return found, name
    try:
        in_body = type_in_body(record.value)
    except UndecodableMessage:
        if name is None:
            raise
        return None, name  # somebody else's type, perhaps in another format
    if in_body is not None:
        return events.names.get(in_body), name or in_body
    if name is not None:
        return None, name
    if events.only is None:
        raise UndecodableMessage(f"no {CE_TYPE} header and no event_type in the body")
    return events.only, None


def build_event(
    event_type: EventType, envelope: Envelope, event_id: str, milliseconds: int
) -> BaseEvent:
    """Build an event from its envelope, and upcast it to the newest version.

    `milliseconds` is the time of the record, for an envelope without one. Raises UndecodableMessage.
    """
    body, version = envelope.body, envelope.version
    if envelope.problem is not None:
        raise UndecodableMessage(f"{event_type.name}: {envelope.problem}")
    if isinstance(body, bytes):
        if version is None:
            event = _build_newest(body, event_type, event_id, envelope.time, milliseconds)
            if event is not None:
                return event
        body = parse_body(body)
    if not isinstance(body, dict):
        raise UndecodableMessage(f"not a JSON object but {type(body).__name__}")
    body["event_id"] = event_id
    body["timestamp"] = envelope.time or _time_of(milliseconds)
    body["event_type"] = event_type.name
    body["version"] = event_type.version if version is None else version
    try:
        if version is None:
            return validate(body, event_type)
        return decode_payload(body, event_type)
    except UndecodableMessage:
        raise
    except Exception as error:  # as in codec.decode_event
        raise UndecodableMessage(f"{event_type.name}: cannot be read: {error!r}") from error


def _build_newest(
    body: bytes,
    event_type: EventType,
    event_id: str,
    time: datetime | str | None,
    milliseconds: int,
) -> BaseEvent | None:
    """Append the envelope's fields to the JSON object, so that pydantic parses it only once.

    They come last, because of several fields of one name the last one counts. Only an object has a last
    brace with fields before it, so the result is valid only if `body` is.
    """
    if not body.endswith(b"}"):
        return None
    before_id, before_time, after = event_type.base_fields
    try:
        moment = to_json(time).decode() if time else _epoch_time(milliseconds)
        fields = f"{before_id}{event_id}{before_time}{moment}{after}"
        return event_type.read_json(body[:-1] + fields.encode())
    except Exception:  # the slow path reports it, or adds the fields to an empty object
        return None


def _epoch_time(milliseconds: int) -> int | float:
    """Return the time as a number that pydantic reads: a large one as milliseconds, or as seconds."""
    return milliseconds if milliseconds > _MOST_SECONDS else milliseconds / 1000


def _time_of(milliseconds: int) -> datetime:
    """Return the time of a record. Raises UndecodableMessage."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise UndecodableMessage(f"the time {milliseconds} of the record is no date") from None
