"""A message as the consumer finds it: with an event in it, or without one."""

from typing import NamedTuple

from aiokafka import ConsumerRecord

from app.platform.events.event import BaseEvent
from app.platform.kafka.errors import UndecodableMessage


class Delivery(NamedTuple):
    """A record and the event in it."""

    record: ConsumerRecord
    event: BaseEvent


class Undecodable(NamedTuple):
    """A record in which there is no event, and why not."""

    record: ConsumerRecord
    error: UndecodableMessage
