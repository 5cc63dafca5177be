"""Messages that the SDK of CloudEvents wrote, on a real broker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from cloudevents.core.bindings.kafka import (
    KafkaMessage,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from prometheus_client import REGISTRY as METRICS

from app.platform.events.event import EventRegistry, EventTopic, EventType
from app.platform.kafka.admin import provision
from app.platform.kafka.codec import original_headers as sent_headers
from app.platform.kafka.envelopes import CloudEvents
from app.platform.kafka.retry import replay_message
from app.platform.kafka.settings import client_options
from app.platform.kafka.subscription import RetryPolicy, Subscription
from app.platform.kafka.topics import foreign_topics
from tests.fixtures import eventually
from tests.world import Counted, World, failing, record_effect

MODES = pytest.mark.parametrize("write", [to_binary_event, to_structured_event])


def sent_by_sdk(write: Any, number: int, type: str = "com.acme.Counted", **more: Any) -> Any:
    attributes = {"type": type, "source": "/billing", "id": f"c-{number}", **more}
    return write(CloudEvent(attributes, {"name": "a", "number": number}))


@pytest.fixture
def estate(world: World) -> World:
    """A world in which things are counted on somebody else's topic."""
    topic = EventTopic("{service}_Things.v1", CloudEvents())
    entry = EventType(Counted, service=world.registry.service, topic=topic, type="com.acme.Counted")
    return replace(world, registry=EventRegistry(world.registry.service, [entry]))


@asynccontextmanager
async def writing(world: World, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client_options(world.settings), **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write_all(producer: AIOKafkaProducer, topic: str, *messages: KafkaMessage) -> None:
    for message in messages:
        headers = list(message.headers.items())
        await producer.send_and_wait(topic, message.value, b"a", headers=headers)


async def create_foreign(world: World) -> None:
    """The other service would create its topic."""
    await provision(world.settings, foreign_topics(world.settings, world.registry))


@MODES
async def test_events_of_the_sdk_are_applied_once(estate: World, write: Any) -> None:
    first, second = sent_by_sdk(write, 1), sent_by_sdk(write, 2)
    await create_foreign(estate)
    async with (
        estate.running(Subscription("counter", {Counted: record_effect})),
        writing(estate) as producer,
    ):
        skipped = sent_by_sdk(write, 9, "com.acme.Moved")
        await write_all(producer, estate.topic, first, skipped, first, second, first)
        await eventually(lambda: estate.committed("counter"), lambda offset: offset == 5)

    assert await estate.effects() == [("a", 1), ("a", 2)]
    labels = {"consumer": "counter", "topic": estate.topic}
    assert METRICS.get_sample_value("kafka_messages_skipped_total", labels) == 1
    assert METRICS.get_sample_value("kafka_inbox_duplicates_total", labels) == 2


@MODES
async def test_a_failed_event_of_the_sdk_is_delayed_and_replayed(estate: World, write: Any) -> None:
    counter = Subscription(
        "counter",
        {Counted: failing(2, ValueError("not yet"))},
        retry=RetryPolicy(attempts=1, retry_after=[timedelta(seconds=1)]),
    )
    message = sent_by_sdk(write, 1)
    await create_foreign(estate)
    async with estate.running(counter), writing(estate) as producer:
        await write_all(producer, estate.topic, message)
        (letter,) = await estate.dead_letters("counter", 1)
        assert letter.value == message.value
        assert set(letter.headers) >= set(message.headers.items())
        assert await estate.effects() == []
        await estate.producer.send(replay_message(letter))
        assert await estate.has_effects(1) == [("a", 1)]
        (replayed,) = await estate.records(f"{estate.topic}.counter.replay")
        await write_all(producer, estate.topic, message)  # again, when it is applied
        await eventually(lambda: estate.committed("counter"), lambda offset: offset == 2)

    assert (replayed.key, replayed.value) == (b"a", message.value)
    assert await estate.effects() == [("a", 1)]


async def test_aborted_events_and_control_records_are_not_handled(estate: World) -> None:
    await create_foreign(estate)
    async with (
        estate.running(Subscription("counter", {Counted: record_effect})),
        writing(estate, transactional_id=estate.registry.service) as producer,
    ):
        for number, commit in [(1, True), (2, False), (3, True), (4, False)]:
            await producer.begin_transaction()
            await write_all(producer, estate.topic, sent_by_sdk(to_binary_event, number))
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        await eventually(lambda: estate.committed("counter"), lambda offset: offset == 8)

    assert await estate.effects() == [("a", 1), ("a", 3)]
    assert await estate.records(f"{estate.topic}.counter.dlq") == []


async def test_poison_does_not_hold_up_cloud_events(estate: World) -> None:
    poison: list[tuple[bytes, list[tuple[str, bytes | None]]]] = [
        (b"\xff", [("ce_specversion", b"1.0")]),
        (b"{}", [("ce_specversion", None)]),
        (b"{}", [("ce_specversion", b"1.0"), ("ce_id", b"")]),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")]),
        (b"", []),
    ]
    await create_foreign(estate)
    async with (
        estate.running(Subscription("counter", {Counted: record_effect})),
        writing(estate) as producer,
    ):
        for value, headers in poison:
            await producer.send_and_wait(estate.topic, value, b"\xff\xfe", headers=headers)
        await producer.send_and_wait(estate.topic, b"x", b"")
        message = sent_by_sdk(to_binary_event, 1)
        await write_all(producer, estate.topic, message)
        letters = await estate.dead_letters("counter", len(poison) + 1)
        assert await estate.has_effects(1) == [("a", 1)]

    kept = {(letter.key, letter.value, tuple(sent_headers(letter.headers))) for letter in letters}
    assert kept == {(b"\xff\xfe", value, tuple(headers)) for value, headers in poison} | {
        (b"", b"x", ())
    }
