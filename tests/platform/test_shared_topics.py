"""Topics with names of their own, and with several types of events."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, Literal

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from prometheus_client import REGISTRY as METRICS
from samples import FakeUnits, MeterNamed, MeterRead, body, meter_read, named_2, named_3, record

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.envelope import Decoder, Envelope, Received
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType, Tombstone
from app.platform.kafka import codec as names
from app.platform.kafka.asyncapi import document
from app.platform.kafka.codec import Message, decode, encode, header
from app.platform.kafka.debezium import DebeziumChanges, DebeziumOutbox
from app.platform.kafka.envelopes import CloudEvents, PlainJson
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.offsets import OffsetTracker
from app.platform.kafka.processing import Processor
from app.platform.kafka.retry import replay_message
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.status import ConsumerStatus
from app.platform.kafka.subscription import Handler, RetryPolicy, Subscription
from app.platform.kafka.topics import foreign_topics, required_topics, source_topics
from app.platform.tracing import Trace
from tests.fixtures import eventually
from tests.world import Counted, World, failing

METERS = EventTopic("{service}.meter")
UPCASTERS = {1: named_2, 2: named_3}
SHARED = EventRegistry(
    "shop", [EventType(MeterRead, topic=METERS), EventType(MeterNamed, UPCASTERS, topic=METERS)]
)
FOREIGN = EventRegistry(
    "accounts",
    [EventType(MeterRead, service="shop", topic="Meters_All.v1", type="com.acme.MeterRead")],
)
DLQ = "shop.meter.billing.dlq"


def named(version: str = "3.1.0") -> dict[str, Any]:
    return {
        "event_id": "6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f",
        "timestamp": "2024-05-01T12:00:00Z",
        "version": version,
        "event_type": "meter.named",
        "meter_id": "m-1",
        "first": "Ada",
        "last": "Lovelace",
        "title": "none",
    }


class Billing:
    """A consumer of the events that `handlers` has, with an inbox and a producer in memory."""

    def __init__(self, registry: EventRegistry = SHARED, *models: type[Any]) -> None:
        self.seen: list[Any] = []
        handlers: dict[type[Any], Any] = dict.fromkeys(models or [MeterRead], self._see)
        self.subscription = Subscription("billing", handlers)
        self.producer, self.units = FakeProducer(), FakeUnits()
        self._processor = Processor(
            self.subscription,
            registry,
            source_topics(self.subscription, registry),
            self.units,  # type: ignore[arg-type]  # a fake in its place
            self.producer,
            ConsumerStatus("billing"),
        )

    async def _see(self, event: Any, uow: object) -> None:
        self.seen.append(event)

    async def process(self, *records: ConsumerRecord) -> OffsetTracker:
        batch: dict[TopicPartition, list[ConsumerRecord]] = {}
        for each in records:
            batch.setdefault(TopicPartition(each.topic, each.partition), []).append(each)
        tracker = OffsetTracker(batch)
        await self._processor.process(batch, tracker)
        return tracker


def on(topic: str, value: bytes | None, offset: int = 0, ce_type: str | None = None) -> Any:
    headers = [] if ce_type is None else [(names.CE_TYPE, ce_type.encode())]
    return record(value, topic=topic, offset=offset, headers=headers)


def skipped(topic: str, consumer: str = "billing", metric: str = "messages") -> float:
    labels = {"consumer": consumer, "topic": topic}
    return METRICS.get_sample_value(f"kafka_{metric}_skipped_total", labels) or 0.0


def test_several_events_share_the_topic_of_their_entity() -> None:
    assert SHARED.topic(MeterRead) == SHARED.topic(MeterNamed) == "shop.meter"
    assert SHARED.owned_topics() == ["shop.meter"]
    message = encode(meter_read(), SHARED, Trace("story"))
    assert (message.topic, header(message.headers, names.CE_TYPE)) == ("shop.meter", "meter.read")


def test_a_foreign_topic_has_any_name_that_kafka_allows() -> None:
    assert FOREIGN.topic(MeterRead) == "Meters_All.v1"
    (topic,) = foreign_topics(KafkaSettings(_env_file=None), FOREIGN)
    assert (topic.name, topic.owner) == ("Meters_All.v1", "shop")


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "é", "a/b", "a" * 250, "a\n"])
def test_a_name_that_kafka_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a topic name"):
        EventRegistry("shop", [EventType(MeterRead, topic=EventTopic(name))])


def test_types_of_a_topic_that_cannot_be_told_apart_are_refused() -> None:
    named = EventType(MeterNamed, UPCASTERS, topic=METERS, type="meter.read")
    with pytest.raises(ValueError, match="cannot be told apart"):
        EventRegistry("shop", [EventType(MeterRead, topic=METERS), named])


def test_events_of_a_topic_with_different_owners_are_refused() -> None:
    events = [
        EventType(MeterRead, service="a", topic="x"),
        EventType(MeterNamed, UPCASTERS, "b", "x"),
    ]
    with pytest.raises(ValueError, match="declares the topic x differently"):
        EventRegistry("shop", events)


def test_a_shared_topic_is_not_shared_by_accident() -> None:
    events = [EventType(MeterRead), EventType(MeterNamed, UPCASTERS, topic="shop.meter.read")]
    with pytest.raises(ValueError, match=r"share the topic shop\.meter\.read"):
        EventRegistry("shop", events)


async def test_events_of_one_topic_keep_their_order() -> None:
    billing = Billing(SHARED, MeterRead, MeterNamed)
    await billing.process(
        on("shop.meter", body(meter_read(count=1)), 0, "meter.read"),
        on("shop.meter", json.dumps(named()).encode(), 1, "meter.named"),
        on("shop.meter", body(meter_read(count=2)), 2, "meter.read"),
    )

    assert [type(event) for event in billing.seen] == [MeterRead, MeterNamed, MeterRead]


@pytest.mark.parametrize("ce_type", [None, "meter.named", "com.acme.meter.named"])
async def test_the_type_is_in_the_header_or_in_the_body(ce_type: str | None) -> None:
    billing = Billing(SHARED, MeterRead, MeterNamed)
    await billing.process(on("shop.meter", json.dumps(named()).encode(), 0, ce_type))

    assert [type(event) for event in billing.seen] == [MeterNamed]


@pytest.mark.parametrize(
    ("ce_type", "value"),
    [
        ("meter.named", json.dumps(named()).encode()),  # registered, and not handled
        ("meter.named", b"\xff"),  # not looked at
        ("meter.removed", b'{"event_type": "meter.removed"}'),
        ("meter.removed", b"Obj\x01\xff"),  # of an unknown type, in an unknown format
        (None, b'{"event_type": "meter.removed"}'),
    ],
)
async def test_a_type_without_a_handler_is_skipped_and_counted(
    ce_type: str | None, value: bytes
) -> None:
    billing, before = Billing(), skipped("shop.meter")
    tracker = await billing.process(
        on("shop.meter", value, 0, ce_type),
        on("shop.meter", body(meter_read(count=5)), 1, "meter.read"),
    )

    assert [event.count for event in billing.seen] == [5]
    assert billing.producer.sent == []
    assert tracker.complete
    assert skipped("shop.meter") == before + 1


@pytest.mark.parametrize("value", [b"\xff", b"{}", b"[]", b'{"event_type": 5}'])
async def test_a_message_without_a_type_is_dead_lettered(value: bytes) -> None:
    billing = Billing()
    await billing.process(on("shop.meter", value))

    (letter,) = billing.producer.on(DLQ)
    assert letter.value == value


async def test_a_failed_message_whose_handler_is_gone_is_not_skipped() -> None:
    billing = Billing()
    await billing.process(on(f"{DLQ.removesuffix('dlq')}replay", json.dumps(named()).encode()))

    (letter,) = billing.producer.on(DLQ)
    assert header(letter.headers, names.ERROR_MESSAGE) == (
        "the type meter.named has no handler in this consumer any more"
    )


async def test_a_single_event_on_a_foreign_topic_is_told_by_its_type() -> None:
    billing = Billing(FOREIGN)
    await billing.process(
        on("Meters_All.v1", body(meter_read(count=1)), 0, "com.acme.MeterRead"),
        on("Meters_All.v1", b"{}", 1, "com.acme.MeterSold"),
        on("Meters_All.v1", body(meter_read(count=3)), 2),
    )

    assert [event.count for event in billing.seen] == [1, 3]
    assert billing.producer.sent == []


async def test_an_event_without_data_that_is_skipped_is_no_tombstone() -> None:
    topic = EventTopic("Meters_All.v1", CloudEvents())
    entry = EventType(MeterRead, service="shop", topic=topic, type="com.acme.MeterRead")
    billing = Billing(EventRegistry("accounts", [entry]))
    attributes = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/shop")]
    sold = record(None, topic="Meters_All.v1", headers=[*attributes, ("ce_type", b"sold")])
    tombstone = record(None, topic="Meters_All.v1", headers=attributes, offset=1)
    before = skipped("Meters_All.v1"), skipped("Meters_All.v1", metric="tombstones")
    await billing.process(sold, tombstone)

    after = skipped("Meters_All.v1"), skipped("Meters_All.v1", metric="tombstones")
    assert after == (before[0] + 1, before[1] + 1)


def test_a_body_alone_is_decoded_by_its_event_type() -> None:
    event = meter_read(count=4)

    assert decode("shop.meter", body(event), SHARED) == event


def test_failure_topics_of_a_shared_topic_exist_once() -> None:
    subscription = Billing(SHARED, MeterRead, MeterNamed).subscription
    found = [t.name for t in required_topics(KafkaSettings(_env_file=None), SHARED, [subscription])]

    assert found == ["shop.meter", DLQ, "shop.meter.billing.replay"]


def test_the_document_has_a_channel_with_all_messages_of_a_topic() -> None:
    subscription = Billing().subscription
    info, settings = {"title": "shop", "version": "1"}, KafkaSettings(_env_file=None)
    found = document(info, SHARED, [subscription], settings)

    assert list(found["channels"]) == ["shop.meter"]
    assert set(found["channels"]["shop.meter"]["messages"]) == {"meter.read", "meter.named"}
    (received,) = [op for name, op in found["operations"].items() if name.startswith("receive.")]
    assert received["messages"] == [{"$ref": "#/channels/shop.meter/messages/meter.read"}]


async def forget(tombstone: Tombstone[MeterRead], uow: UnitOfWork) -> None:
    """Take a tombstone."""


@pytest.mark.parametrize(
    ("compacted", "tombstones", "channel", "received"),
    [
        (False, {}, ["meter.read"], ["meter.read"]),
        (True, {}, ["meter.read", "tombstone"], ["meter.read"]),
        (False, {MeterRead: forget}, ["meter.read", "tombstone"], ["meter.read", "tombstone"]),
    ],
)
def test_the_document_has_tombstones_kept_or_handled(
    compacted: bool,
    tombstones: dict[type[BaseEvent], Handler],
    channel: list[str],
    received: list[str],
) -> None:
    topic = EventTopic("Meters_All.v1", compacted=compacted)
    registry = EventRegistry("shop", [EventType(MeterRead, topic=topic)])
    subscription = replace(Billing().subscription, tombstones=tombstones)
    info, settings = {"title": "shop", "version": "1"}, KafkaSettings(_env_file=None)
    found = document(info, registry, [subscription], settings)
    messages = found["channels"]["Meters_All.v1"]["messages"]
    (operation,) = [op for op in found["operations"].values() if op["action"] == "receive"]

    assert list(messages) == channel
    assert [each["$ref"].rpartition("/")[2] for each in operation["messages"]] == received
    assert messages.get("tombstone", {}).get("payload") in ({"type": "null"}, None)


class Own:
    """A decoder that does not describe its messages."""

    def open(self, message: Received) -> Envelope:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("decoder", "content_type", "headers"),
    [
        (CloudEvents(), "application/json", ["ce_specversion", "ce_id", "ce_source", "ce_type"]),
        (PlainJson(), "application/json", None),
        (DebeziumChanges(), "application/json", None),
        (DebeziumOutbox(), "application/json", ["id"]),
        (Own(), "application/octet-stream", None),
    ],
)
def test_the_document_shows_messages_as_they_are_sent(
    decoder: Decoder, content_type: str, headers: list[str] | None
) -> None:
    topic = EventTopic("Meters_All.v1", decoder)
    foreign = EventType(MeterRead, service="shop", topic=topic, type="com.acme.MeterRead")
    ours = EventType(MeterNamed, UPCASTERS)
    registry, settings = EventRegistry("accounts", [foreign, ours]), KafkaSettings(_env_file=None)
    found = document({"title": "a", "version": "1"}, registry, [], settings)
    message = found["channels"]["Meters_All.v1"]["messages"]["meter.read"]
    schemas = found["components"]["schemas"]

    assert message["contentType"] == content_type
    assert message.get("headers", {}).get("required") == headers
    assert not {"bindings", "correlationId"} & message.keys()
    assert message["payload"] == {"$ref": "#/components/schemas/MeterRead"}
    assert schemas["MeterRead"]["required"] == ["meter_id", "count"]
    assert not set(BaseEvent.model_fields) & schemas["MeterRead"]["properties"].keys()
    assert set(BaseEvent.model_fields) <= schemas["MeterNamed"]["properties"].keys()
    assert list(found["operations"]) == ["send.meter.named"]


class Renamed(BaseEvent):
    """Another event of the topic, which nobody handles."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.renamed"] = "thing.renamed"
    name: str


async def test_failures_on_a_shared_topic_are_delayed_and_replayed(world: World) -> None:
    things = EventTopic("{service}_Things.v1.replay")  # its name looks like that of a replay topic
    service = world.registry.service
    events = [EventType(Counted, topic=things), EventType(Renamed, topic=things)]
    shared = replace(world, registry=EventRegistry(service, events))
    later = Subscription(
        "counter",
        {Counted: failing(1, ValueError("not yet"))},
        retry=RetryPolicy(attempts=1, retry_after=[timedelta(seconds=1)]),
    )
    topic = f"{service}_Things.v1.replay"
    sent = [shared.message(Counted(name="a", number=1))]
    sent += [encode(Renamed(name="a"), shared.registry, Trace("story"))]
    sent += [Message(topic, b"a", b"\xff")]  # of no type
    async with shared.running(later):
        assert await shared.producer.send_all(sent) == [None] * 3
        assert await shared.has_effects(1) == [("a", 1)]
        (letter,) = await shared.dead_letters("counter", 1)
        assert await shared.records(f"{topic}.counter.retry.1s")
        assert (letter.topic, letter.value) == (f"{topic}.counter.dlq", b"\xff")
        await shared.producer.send(replay_message(letter))
        await shared.dead_letters("counter", 2)
        await eventually(lambda: shared.committed("counter"), lambda offset: offset == 3)
    assert skipped(topic, "counter") == 1
