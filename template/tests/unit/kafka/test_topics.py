from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kafka.event import TOPIC_MAX_LENGTH, EventRegistry, EventType
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import RetryPolicy, Subscription
from app.kafka.topics import (
    dead_letter_topic,
    format_delay,
    forwarded_limit,
    is_delay_topic,
    is_replay_topic,
    origins,
    replay_topic,
    retry_topic,
    wanted,
)
from tests.unit.kafka.samples import REGISTRY, TOPIC, MeterNamed, MeterRead

SETTINGS = KafkaSettings(
    kafka_topic_partitions=6,
    kafka_topic_replication_factor=2,
    kafka_topic_retention_hours=48,
    kafka_dlq_retention_hours=100,
    _env_file=None,
)
DELAYS = [timedelta(seconds=5), timedelta(minutes=10)]

seconds = st.integers(1, 10**7).map(lambda n: timedelta(seconds=n))


async def handle(event: object, uow: object) -> None: ...


BILLING = Subscription("billing", {MeterRead: handle}, retry=RetryPolicy(retry_after=DELAYS))


@pytest.mark.parametrize(
    ("delay", "text"),
    [
        (timedelta(seconds=5), "5s"),
        (timedelta(seconds=90), "90s"),
        (timedelta(minutes=10), "10m"),
        (timedelta(minutes=60), "1h"),
        (timedelta(days=1), "24h"),
    ],
)
def test_a_delay_is_written_in_its_largest_whole_unit(delay: timedelta, text: str) -> None:
    assert format_delay(delay) == text


@given(seconds, seconds)
def test_different_delays_have_different_topics(one: timedelta, other: timedelta) -> None:
    same_topic = retry_topic(TOPIC, "billing", one) == retry_topic(TOPIC, "billing", other)

    assert same_topic == (one == other)


def test_delay_topics_are_told_from_all_others() -> None:
    assert is_delay_topic(retry_topic(TOPIC, "billing", DELAYS[0]))
    assert is_delay_topic(retry_topic("shop.retry.read", "retry", DELAYS[0]))
    for topic in (
        TOPIC,
        "shop.retry.read",
        "shop.meter.retry",
        replay_topic(TOPIC, "billing"),
        dead_letter_topic(TOPIC, "billing"),
        dead_letter_topic("shop.retry.read", "retry"),
        dead_letter_topic(TOPIC, "retry"),
        replay_topic(TOPIC, "retry"),
    ):
        assert not is_delay_topic(topic), topic


def test_replay_topics_are_told_from_all_others() -> None:
    assert is_replay_topic(replay_topic(TOPIC, "billing"))
    for topic in (
        TOPIC,
        "shop.meter.replay",
        dead_letter_topic(TOPIC, "replay"),
        retry_topic(TOPIC, "replay", DELAYS[0]),
    ):
        assert not is_replay_topic(topic), topic


def test_a_name_that_kafka_would_refuse_is_refused_here() -> None:
    with pytest.raises(ValueError, match="longer than 249"):
        dead_letter_topic("a.b." + "c" * (TOPIC_MAX_LENGTH - 4), "billing")


def test_a_subscription_reads_its_topics_its_replays_and_its_delays_and_knows_where_from() -> None:
    assert origins(BILLING, REGISTRY) == {
        TOPIC: TOPIC,
        f"{TOPIC}.billing.replay": TOPIC,
        f"{TOPIC}.billing.retry.5s": TOPIC,
        f"{TOPIC}.billing.retry.10m": TOPIC,
    }


def test_the_service_wants_its_events_and_every_topic_that_its_consumers_write_to() -> None:
    names = [topic.name for topic in wanted(SETTINGS, REGISTRY, [BILLING])]

    assert names == [
        TOPIC,
        "shop.meter.named",
        f"{TOPIC}.billing.dlq",
        f"{TOPIC}.billing.replay",
        f"{TOPIC}.billing.retry.5s",
        f"{TOPIC}.billing.retry.10m",
    ]


def test_everything_that_a_consumer_reads_or_writes_is_wanted() -> None:
    names = {topic.name for topic in wanted(SETTINGS, REGISTRY, [BILLING])}

    assert set(origins(BILLING, REGISTRY)) <= names
    assert len(names) == len(wanted(SETTINGS, REGISTRY, [BILLING]))


def test_a_topic_of_another_service_is_not_wanted_but_its_failures_are() -> None:
    registry = EventRegistry("accounts", [EventType(MeterRead, service="shop")])
    names = [topic.name for topic in wanted(SETTINGS, registry, [BILLING])]

    assert TOPIC not in names
    assert f"{TOPIC}.billing.dlq" in names


def test_topics_have_the_settings_of_the_service() -> None:
    by_name = {topic.name: topic for topic in wanted(SETTINGS, REGISTRY, [BILLING])}

    assert {(t.partitions, t.replication_factor) for t in by_name.values()} == {(6, 2)}
    assert by_name[TOPIC].config == {"retention.ms": str(48 * 3_600_000)}
    assert by_name[f"{TOPIC}.billing.dlq"].config["retention.ms"] == str(100 * 3_600_000)


def test_a_message_of_the_largest_size_still_fits_when_it_is_forwarded() -> None:
    limit = forwarded_limit(SETTINGS)
    assert limit > SETTINGS.kafka_max_message_bytes

    for topic in wanted(SETTINGS, REGISTRY, [BILLING]):
        if topic.name not in REGISTRY.owned_topics():
            assert topic.config["max.message.bytes"] == str(limit)


def test_an_unregistered_event_is_found_when_topics_are_listed() -> None:
    other = EventRegistry("shop", [EventType(MeterRead)])

    with pytest.raises(LookupError, match="MeterNamed"):
        wanted(SETTINGS, other, [Subscription("names", {MeterNamed: handle})])
