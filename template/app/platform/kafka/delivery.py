"""Records after decoding: with an event, or with the reason why there is none."""

from typing import NamedTuple

from aiokafka import ConsumerRecord

from app.platform.events.event import BaseEvent
from app.platform.kafka.errors import UndecodableMessage


class Delivery(NamedTuple):
    """A record and its event."""

    record: ConsumerRecord
    event: BaseEvent


class Undecodable(NamedTuple):
    """A record that cannot be decoded, and the error."""

    record: ConsumerRecord
    error: UndecodableMessage
