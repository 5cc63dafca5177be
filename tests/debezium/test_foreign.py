"""Messages that Debezium and Kafka's console producer wrote, as the page on foreign events reads them."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from aiokafka import ConsumerRecord
from pydantic import BaseModel

from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType
from app.platform.kafka.admin import provision, read_to_end, reading
from app.platform.kafka.debezium import DebeziumChanges, DebeziumOutbox
from app.platform.kafka.decoding import Decoded, EventDecoder
from app.platform.kafka.envelopes import CloudEvents
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import foreign_topics
from debezium.connect import Connect, produce
from debezium.test_debezium import kafka, postgres

__all__ = ["kafka", "postgres"]  # fixtures


class Row(BaseModel):
    id: int
    name: str


class ParcelChanged(BaseEvent):
    key_field: ClassVar[str] = "op"
    event_type: Literal["parcel.changed"] = "parcel.changed"
    op: Literal["c", "r", "u", "d"]
    before: Row | None
    after: Row | None


class ParcelSent(BaseEvent):
    key_field: ClassVar[str] = "name"
    event_type: Literal["parcel.sent"] = "parcel.sent"
    name: str


class NoteWritten(BaseEvent):
    key_field: ClassVar[str] = "text"
    event_type: Literal["note.written"] = "note.written"
    text: str


def entry(model: type[BaseEvent], topic: str, decoder: Any, type: str | None = None) -> EventType:
    return EventType(model, service="erp", topic=EventTopic(topic, decoder), type=type)


CHANGES, ROUTED, NOTES = "erp.public.parcel", "outbox.event.parcel", "Notes.v1"
REGISTRY = EventRegistry(
    "shop",
    [
        entry(ParcelChanged, CHANGES, DebeziumChanges()),
        entry(ParcelSent, ROUTED, DebeziumOutbox(), "Sent"),
        entry(NoteWritten, NOTES, CloudEvents(), "note"),
    ],
)
TABLES = """
CREATE TABLE parcel (id int PRIMARY KEY, name text);
ALTER TABLE parcel REPLICA IDENTITY FULL;
CREATE TABLE outgoing (
    id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload jsonb
);
INSERT INTO parcel VALUES (1, 'before');
"""


def connector(url: str, name: str, table: str, more: dict[str, str]) -> dict[str, Any]:
    json_converter = "org.apache.kafka.connect.json.JsonConverter"
    return {
        "name": name,
        "config": {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "plugin.name": "pgoutput",
            "database.hostname": "127.0.0.1",
            "database.port": str(urlsplit(url).port),
            "database.user": urlsplit(url).username,
            "database.password": urlsplit(url).password,
            "database.dbname": "postgres",
            "topic.prefix": "erp",
            "slot.name": name,
            "publication.name": name,
            "publication.autocreate.mode": "filtered",
            "table.include.list": f"public.{table}",
            "key.converter": json_converter,
            "value.converter": json_converter,
            **more,
        },
    }


PLAIN_JSON = {"key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false"}
ROUTER = {
    "topic.prefix": "outgoing",
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.outbox.table.fields.additional.placement": "type:header:eventType",
}


async def decoded(settings: KafkaSettings, topic: str, count: int) -> list[Decoded]:
    """Wait for `count` messages with a value, and decode them."""
    deadline = time.monotonic() + 60
    while True:
        async with reading(settings, [topic]) as client:
            records = [r async for r in read_to_end(client) if r.value is not None]
        if len(records) >= count:
            return [
                found
                for r in in_order(records)
                if (found := EventDecoder(REGISTRY).decode(r, topic))
            ]
        assert time.monotonic() < deadline, f"{len(records)} of {count} messages in {topic}"
        await asyncio.sleep(0.5)


def parcel(change: Decoded) -> ParcelChanged:
    assert isinstance(change.event, ParcelChanged)
    return change.event


def in_order(records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
    return sorted(records, key=lambda record: (record.partition, record.offset))


async def test_messages_of_debezium_are_read(
    postgres: PostgresServer, kafka: KafkaCluster, tmp_path: Path
) -> None:
    settings = KafkaSettings(
        kafka_bootstrap_servers=kafka.bootstrap_servers, kafka_topic_partitions=1, _env_file=None
    )
    await provision(settings, foreign_topics(settings, REGISTRY))
    database = await asyncpg.connect(postgres.url)
    await database.execute(TABLES)
    connect = Connect(tmp_path, kafka.bootstrap_servers, {})
    try:
        connect.start(kafka.log().with_name("log4j2.properties"))
        # Once with schemas in the messages, which is Connect's default, and once without.
        parcels = connector(postgres.url, "parcels", "parcel", {})
        outgoing = connector(postgres.url, "outgoing", "outgoing", ROUTER | PLAIN_JSON)
        for each in (parcels, outgoing):
            await asyncio.to_thread(connect.call, "POST", "/connectors", each)
        await decoded(settings, CHANGES, 1)
        await database.execute("UPDATE parcel SET name = 'after'")
        await database.execute("DELETE FROM parcel")
        ids = [uuid4(), uuid4()]
        for id, kind in zip(ids, ["Sent", "Lost"], strict=True):
            row = (id, "parcel", "1", kind, '{"name": "a"}')
            await database.execute("INSERT INTO outgoing VALUES ($1, $2, $3, $4, $5)", *row)

        changes = await decoded(settings, CHANGES, 3)
        (sent,) = await decoded(settings, ROUTED, 2)
    finally:
        connect.process.kill()
        await database.close()

    assert [parcel(change).op for change in changes] == ["r", "u", "d"]
    assert parcel(changes[1]).before == Row(id=1, name="before")
    assert parcel(changes[1]).after == Row(id=1, name="after")
    assert len({change.id for change in changes}) == 3
    assert isinstance(sent.event, ParcelSent)
    assert (sent.event.event_id, sent.event.name) == (ids[0], "a")


LINES = """\
ce_specversion:1.0,ce_id:1,ce_source:/notes,ce_type:note\tk\t{"text": "one"}
ce_specversion:1.0,ce_id:1,ce_source:/notes,ce_type:note\tk\t{"text": "one"}
ce_specversion:1.0,ce_id:2,ce_source:/notes,ce_type:other\tk\tno JSON
x:y\tk\tNULL
"""


async def test_messages_of_the_console_producer_are_read(kafka: KafkaCluster) -> None:
    settings = KafkaSettings(
        kafka_bootstrap_servers=kafka.bootstrap_servers, kafka_topic_partitions=1, _env_file=None
    )
    await provision(settings, foreign_topics(settings, REGISTRY))
    await asyncio.to_thread(produce, kafka.bootstrap_servers, NOTES, LINES)

    first, again = await decoded(settings, NOTES, 3)
    assert first.id == again.id
    assert isinstance(first.event, NoteWritten)
    assert first.event.text == "one"
