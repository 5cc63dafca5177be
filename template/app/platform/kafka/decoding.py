"""From the bytes of a message to its event: the one place that knows how a topic's messages are read."""

from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from aiokafka import ConsumerRecord

from app.platform.events.event import BaseEvent, EventRegistry, EventType, TopicEvents
from app.platform.kafka.codec import CE_TYPE, decode_event, header, type_in_body
from app.platform.kafka.errors import UndecodableMessage


class Decoded(NamedTuple):
    """An event, and the id by which the inbox recognises its message."""

    event: BaseEvent
    id: UUID


class EventDecoder:
    """Decodes the messages of a consumer, which handles the events `wanted`; None means all."""

    def __init__(
        self, registry: EventRegistry, wanted: Collection[type[BaseEvent]] | None = None
    ) -> None:
        self._registry = registry
        self._wanted = wanted

    def decode(self, record: ConsumerRecord, origin: str) -> Decoded | None:
        """Decode a message that came from the topic `origin`; return None if its type is not wanted.

        Raises UndecodableMessage.
        """
        events = self._registry.events_on(origin)
        if events is None:
            raise UndecodableMessage(f"no event is registered for the topic {origin}")
        event_type = events.only if events.declared is None else self._choose(record, events)
        if event_type is None:
            return None
        event = decode_event(record.value, event_type)
        return Decoded(event, event.event_id)

    def _choose(self, record: ConsumerRecord, events: TopicEvents) -> EventType | None:
        """Return the event type of the message, if it is wanted."""
        found = _type_of(record, events)
        if found is not None and (self._wanted is None or found.model in self._wanted):
            return found
        if record.topic != events.name:
            # It failed when it still had a handler. To skip it would lose it.
            name = found.name if found is not None else header(record.headers, CE_TYPE)
            raise UndecodableMessage(f"the type {name} has no handler in this consumer any more")
        return None


def _type_of(record: ConsumerRecord, events: TopicEvents) -> EventType | None:
    """Return the event type by the header or else by the body; None if it is not registered."""
    name = header(record.headers, CE_TYPE)
    if name is not None and (found := events.types.get(name)) is not None:
        return found
    try:
        in_body = type_in_body(record.value)
    except UndecodableMessage:
        if name is None:
            raise
        return None  # somebody else's type, perhaps in another format
    if in_body is not None:
        return events.names.get(in_body)
    if name is not None:
        return None
    if events.only is None:
        raise UndecodableMessage(f"no {CE_TYPE} header and no event_type in the body")
    return events.only
