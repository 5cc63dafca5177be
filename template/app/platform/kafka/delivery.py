"""Records after decoding: with an event, or with the reason why there is none."""

from typing import Any, NamedTuple
from uuid import UUID

from aiokafka import ConsumerRecord

from app.platform.events.event import BaseEvent, Tombstone
from app.platform.kafka.errors import UndecodableMessage


class Delivery(NamedTuple):
    """A record and its event, and the id by which the inbox recognises it."""

    record: ConsumerRecord
    event: BaseEvent | Tombstone[Any]
    id: UUID


class Undecodable(NamedTuple):
    """A record that cannot be decoded, and the error."""

    record: ConsumerRecord
    error: UndecodableMessage
