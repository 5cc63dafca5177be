from datetime import datetime
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from app.kafka.event import (
    TOPIC_MAX_LENGTH,
    BaseEvent,
    EventRegistry,
    EventType,
    check_topic_name,
)
from tests.unit.kafka.samples import (
    NAMED_TOPIC,
    REGISTRY,
    TOPIC,
    MeterNamed,
    MeterRead,
    meter_read,
    named_2,
    named_3,
)


class BadlyNamed(BaseEvent):
    key_field: ClassVar[str] = "event_id"
    event_type: Literal["BadlyNamed"] = "BadlyNamed"


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        meter_read().count = 2  # type: ignore[misc]  # what mypy forbids, pydantic must too


def test_each_event_has_an_id_and_a_time_with_a_zone() -> None:
    first, second = meter_read(), meter_read()

    assert first.event_id != second.event_id
    assert first.timestamp.utcoffset() is not None


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        meter_read(timestamp=datetime(2024, 5, 1))


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0-rc", "v1.0.0", "1.0.0\n", ""])
def test_a_version_is_three_numbers(version: str) -> None:
    with pytest.raises(ValidationError, match="version"):
        meter_read(version=version)


@pytest.mark.parametrize("level", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_refused(level: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        meter_read(level=level)


def test_the_key_is_the_id_of_the_entity() -> None:
    assert meter_read("m-7").key == "m-7"


def test_the_registry_knows_topics_and_events_by_each_other() -> None:
    assert REGISTRY.topic(MeterRead) == TOPIC
    found = REGISTRY.on_topic(NAMED_TOPIC)
    assert found is not None
    assert (found.model, found.name, found.version, found.major) == (
        MeterNamed,
        "meter.named",
        "3.1.0",
        3,
    )
    assert REGISTRY.on_topic("shop.meter.other") is None
    assert [entry.model for entry in REGISTRY] == [MeterRead, MeterNamed]


def test_an_event_that_is_not_registered_is_named_in_the_error() -> None:
    with pytest.raises(LookupError, match="BadlyNamed is not registered"):
        REGISTRY.topic(BadlyNamed)


def test_the_events_of_other_services_are_on_their_topics_and_not_ours() -> None:
    registry = EventRegistry("billing", [EventType(MeterRead, service="shop")])

    assert registry.topic(MeterRead) == TOPIC
    assert registry.owned_topics() == []


def test_two_events_cannot_share_a_topic() -> None:
    with pytest.raises(ValueError, match=f"share the topic {TOPIC}"):
        EventRegistry("shop", [EventType(MeterRead), EventType(MeterRead)])


def test_a_version_that_no_upcaster_starts_from_is_refused() -> None:
    with pytest.raises(ValueError, match="no upcaster from version 1"):
        EventRegistry("shop", [EventType(MeterNamed, upcasters={2: named_3})])
    EventRegistry("shop", [EventType(MeterNamed, upcasters={1: named_2, 2: named_3})])


def test_an_event_type_that_gives_no_topic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"service\.entity\.action"):
        EventRegistry("shop", [EventType(BadlyNamed)])


@pytest.mark.parametrize(
    "topic",
    [
        "user.created",
        "shop.user.created.now",
        "Shop.user.created",
        "shop..created",
        "shop.user.created\n",
        "shop.user.crée",
        "-shop.user.created",
        "a.b." + "c" * TOPIC_MAX_LENGTH,
    ],
)
def test_a_topic_name_is_service_entity_action(topic: str) -> None:
    with pytest.raises(ValueError, match="is not a topic name"):
        check_topic_name(topic)


def test_the_longest_topic_name_is_taken() -> None:
    check_topic_name("a.b." + "c" * (TOPIC_MAX_LENGTH - 4))
