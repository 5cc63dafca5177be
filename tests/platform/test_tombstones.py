"""Messages without a value that a handler takes, and compacted topics."""

from dataclasses import replace
from datetime import timedelta
from typing import ClassVar, Literal

import pytest
from samples import record
from sqlalchemy import text

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType, Tombstone
from app.platform.kafka.admin import State, TopicAdmin
from app.platform.kafka.codec import Message
from app.platform.kafka.dead_letters import DeadLetter, decoder_of, inbox_id, is_decodable
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.envelopes import CloudEvents
from app.platform.kafka.errors import UndecodableMessage
from app.platform.kafka.retry import dead_letter_message, replay_message
from app.platform.kafka.subscription import Handler, RetryPolicy, Subscription
from app.platform.kafka.topics import required_topics
from tests.world import Counted, World, record_effect

DELETED = text("INSERT INTO effects (name, number) VALUES (:key, -1)")


async def delete(tombstone: Tombstone[Counted], uow: UnitOfWork) -> None:
    await uow.session.execute(DELETED, {"key": tombstone.key})


@pytest.fixture
def compacted(world: World) -> World:
    topic = EventTopic("{service}.things", compacted=True)
    registry = EventRegistry(world.registry.service, [EventType(Counted, topic=topic)])
    return replace(world, registry=registry)


def subscribed(handler: Handler = delete, retry: RetryPolicy | None = None) -> Subscription:
    handlers: dict[type[BaseEvent], Handler] = {Counted: record_effect}
    retry = retry or RetryPolicy()
    return Subscription("counter", handlers, retry=retry, tombstones={Counted: handler})


async def test_tombstones_are_handled_in_order_and_once(compacted: World) -> None:
    tombstone = Message(compacted.topic, b"a", None)
    async with compacted.running(subscribed()):
        await compacted.send(Counted(name="a", number=1))
        await compacted.producer.send(tombstone)
        await compacted.send(Counted(name="a", number=2))
        await compacted.has_effects(3)

    assert await compacted.effects() == [("a", 1), ("a", -1), ("a", 2)]
    async with compacted.database.engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM inbox")) == 3


async def test_a_failed_tombstone_is_delayed_and_replayed(compacted: World) -> None:
    attempts = []

    async def fail_twice(tombstone: Tombstone[Counted], uow: UnitOfWork) -> None:
        attempts.append(tombstone)
        await delete(tombstone, uow)
        if len(attempts) < 3:
            raise ValueError("not yet")

    policy = RetryPolicy(attempts=1, retry_after=[timedelta(seconds=1)])
    async with compacted.running(subscribed(fail_twice, retry=policy)):
        await compacted.producer.send(Message(compacted.topic, b"a", None))
        (found,) = await compacted.dead_letters("counter", 1)
        assert (found.key, found.value) == (b"a", None)
        letter = DeadLetter.of(found)
        decoder = decoder_of("counter", compacted.registry, [subscribed()])
        assert is_decodable(letter, decoder)
        await compacted.producer.send(replay_message(found))
        assert await compacted.has_effects(1) == [("a", -1)]

    assert {attempt.event_id for attempt in attempts} == {inbox_id(letter, decoder)}


@pytest.mark.parametrize(("key", "words"), [(b"\xff", "is no text"), (None, "deletes nothing")])
def test_a_tombstone_without_a_readable_key_is_refused(key: bytes | None, words: str) -> None:
    registry = EventRegistry("shop", [EventType(Counted)])
    decoder = EventDecoder(registry, [Counted], [Counted])
    topic = "shop.thing.counted"

    with pytest.raises(UndecodableMessage, match=words):
        decoder.decode(record(None, key, topic=topic), topic)
    found = decoder.decode(record(None, b"", topic=topic), topic)
    assert found is not None
    assert isinstance(found.event, Tombstone)
    assert found.event.key == ""
    assert EventDecoder(registry, [Counted]).decode(record(None, key, topic=topic), topic) is None


def test_a_position_on_a_topic_made_anew_is_another_tombstone() -> None:
    decoder = EventDecoder(EventRegistry("shop", [EventType(Counted)]), [Counted], [Counted])
    topic = "shop.thing.counted"
    found = [decoder.decode(record(None, topic=topic, timestamp=time), topic) for time in (1, 2)]

    assert len({decoded.id for decoded in found if decoded}) == 2


async def test_a_compacted_topic_is_created_and_checked(compacted: World) -> None:
    topics = required_topics(compacted.settings, compacted.registry, [])
    await compacted.create_topics()
    async with TopicAdmin.connected(compacted.settings) as admin:
        (state,) = await admin.compare(topics)
        kept = replace(topics[0], config={"cleanup.policy": "delete"})
        (wrong,) = await admin.compare([kept])

    assert topics[0].config == {"cleanup.policy": "compact"}
    assert (state.state, wrong.state) == (State.PRESENT, State.DIFFERENT)
    assert "cleanup.policy compact, expected delete" in wrong.detail


class Renamed(BaseEvent):
    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.renamed"] = "thing.renamed"
    name: str


def test_a_topic_has_one_handler_of_tombstones() -> None:
    topic = EventTopic("things")
    registry = EventRegistry(
        "s", [EventType(Counted, topic=topic), EventType(Renamed, topic=topic)]
    )

    with pytest.raises(ValueError, match="two handlers of tombstones share a topic"):
        EventDecoder(registry, [Counted], [Counted, Renamed])


def test_a_consumer_of_tombstones_alone_skips_the_events() -> None:
    registry = EventRegistry("shop", [EventType(Counted)])
    event = record(b"{}", topic="shop.thing.counted")

    assert EventDecoder(registry, [], [Counted]).decode(event, event.topic) is None


ATTRIBUTES = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f"),
    ("ce_source", b"/things"),
    ("ce_type", b"com.acme.Counted"),
]


def test_commands_see_the_tombstones_that_the_consumer_sees() -> None:
    """A CloudEvent without data is an event for a consumer that handles no tombstones."""
    topic = EventTopic("Things.v1", CloudEvents())
    entry = EventType(Counted, service="others", topic=topic, type="com.acme.Counted")
    registry = EventRegistry("shop", [entry])
    message = record(None, b"a", topic="Things.v1", headers=ATTRIBUTES, offset=4)
    letter = dead_letter_message(message, subscribed(), "Things.v1", 1, ValueError("no"))
    found = DeadLetter.of(record(letter.value, b"a", topic=letter.topic, headers=letter.headers))
    subscriptions = [subscribed(), Subscription("reader", {Counted: record_effect})]
    handled = EventDecoder(registry, [Counted], [Counted]).decode(message, "Things.v1")
    by_counter, by_reader = (
        decoder_of(each.name, registry, subscriptions) for each in subscriptions
    )

    assert handled is not None
    assert isinstance(handled.event, Tombstone)
    assert inbox_id(found, by_counter) == handled.id
    assert is_decodable(found, by_counter)
    assert inbox_id(found, by_reader) not in (None, handled.id)
    assert not is_decodable(found, by_reader)  # as an event, it lacks fields
