"""Run inside a rendered service: print the AsyncAPI document of a service with topics of others."""

import json
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.envelope import Decoder, Envelope, Received
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType, Tombstone
from app.platform.kafka.asyncapi import document
from app.platform.kafka.debezium import DebeziumChanges, DebeziumOutbox
from app.platform.kafka.envelopes import CloudEvents, PlainJson
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription


class Line(BaseModel):
    sku: str
    more: "list[Line]" = []


class BillSent(BaseEvent):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
    key_field: ClassVar[str] = "bill"
    event_type: Literal["bill.sent"] = "bill.sent"
    bill: str
    bill_lines: tuple[Line, ...]


class BillPaid(BaseEvent):
    key_field: ClassVar[str] = "bill"
    event_type: Literal["bill.paid"] = "bill.paid"
    bill: str | None = None


class Own:
    """A decoder that does not describe its messages."""

    def open(self, message: Received) -> Envelope:
        raise NotImplementedError


async def handle(event: Any, uow: UnitOfWork) -> None:
    raise NotImplementedError


async def forget(tombstone: Tombstone[Any], uow: UnitOfWork) -> None:
    raise NotImplementedError


def described(decoder: Decoder) -> dict[str, Any]:
    topic = EventTopic("Bills_All.v1", decoder)
    types = [
        EventType(BillSent, service="erp", topic=topic, type="com.acme.BillSent"),
        EventType(BillPaid, service="erp", topic=topic, type="com.acme.BillPaid"),
    ]
    readers = [Subscription("bills", {BillSent: handle}, tombstones={BillPaid: forget})]
    info = {"title": "Bills", "version": "1.0.0", "description": type(decoder).__name__}
    settings = KafkaSettings(_env_file=None)
    return document(info, EventRegistry("shop", types), readers, settings)


DECODERS: list[Decoder] = [CloudEvents(), PlainJson(), DebeziumChanges(), DebeziumOutbox(), Own()]
print(json.dumps([described(decoder) for decoder in DECODERS]))
