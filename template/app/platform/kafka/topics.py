"""The topics of the service: their names, and with what settings they are made."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from app.platform.events.event import TOPIC_MAX_LENGTH, EventRegistry
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription, check_names

# Kafka deletes whole segments, once their last record is old enough. Its own default is a week.
DEAD_LETTER_SEGMENT = timedelta(days=1)
# How much longer than its retention a dead letter may stay: Kafka looks every few minutes.
DEAD_LETTER_OVERTIME = DEAD_LETTER_SEGMENT + timedelta(hours=1)

# What the headers of a failed message may add to it.
FORWARDED_HEADROOM_BYTES = 1_000_000


@dataclass(frozen=True)
class Topic:
    """A topic as the service wants it. `config` holds Kafka's own settings."""

    name: str
    partitions: int
    replication_factor: int
    config: dict[str, str] = field(default_factory=dict)


def dead_letter_topic(topic: str, consumer: str) -> str:
    return _checked(f"{topic}.{consumer}.dlq")


def replay_topic(topic: str, consumer: str) -> str:
    """The topic of `app dlq replay`: only the consumer that the messages failed in reads it."""
    return _checked(f"{topic}.{consumer}.replay")


def retry_topic(topic: str, consumer: str, delay: timedelta) -> str:
    return _checked(f"{topic}.{consumer}.retry.{format_delay(delay)}")


def group_of(consumer: str, settings: KafkaSettings) -> str:
    """The consumer group of the consumer."""
    return f"{settings.kafka_group_id}.{consumer}"


class FailureTopic(NamedTuple):
    """A topic for what a consumer failed at; `keeps` of dead letters, others pass messages on."""

    name: str
    origin: str
    consumer: str
    keeps: bool


def failure_topic(name: str) -> FailureTopic | None:
    """The topic as one that the functions above name; None if it is another's."""
    parts = name.split(".")
    keeps = len(parts) == 5 and parts[4] == "dlq"
    if not (keeps or is_replay_topic(name) or is_delay_topic(name)):
        return None
    return FailureTopic(name, ".".join(parts[:3]), parts[3], keeps)


def is_delay_topic(topic: str) -> bool:
    """Whether `topic` is one of those that `retry_topic` names."""
    parts = topic.split(".")
    return len(parts) == 6 and parts[4] == "retry"


def is_replay_topic(topic: str) -> bool:
    """Whether `topic` is one of those that `replay_topic` names."""
    parts = topic.split(".")
    return len(parts) == 5 and parts[4] == "replay"


def begins_at_the_oldest(topic: str, settings: KafkaSettings) -> bool:
    """Whether a consumer that has committed nothing reads what is in `topic` already.

    What has failed is never passed over, whatever KAFKA_AUTO_OFFSET_RESET says of other topics.
    """
    has_failed = is_delay_topic(topic) or is_replay_topic(topic)
    return has_failed or settings.kafka_auto_offset_reset == "earliest"


def format_delay(delay: timedelta) -> str:
    """A delay as people write it: 5s, 10m, 2h."""
    seconds = int(delay.total_seconds())
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def origins(subscription: Subscription, registry: EventRegistry) -> dict[str, str]:
    """Every topic that the subscription reads, with the topic that its messages first came from."""
    found = {}
    for topic in subscription.topics(registry):
        found[topic] = topic
        found[replay_topic(topic, subscription.name)] = topic
        for delay in subscription.retry.retry_after:
            found[retry_topic(topic, subscription.name, delay)] = topic
    return found


def wanted(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> list[Topic]:
    """The topics that the service owns: of its events, and of its consumers' failures.

    Raises ValueError when names of consumers or topics collide.
    """
    check_names(subscriptions)
    topics = [
        _topic(settings, name, settings.kafka_topic_retention_hours)
        for name in registry.owned_topics()
    ]
    for subscription in subscriptions:
        topics += _of_consumer(settings, registry, subscription)
    _check_distinct(topics)
    return topics


def _check_distinct(topics: Iterable[Topic]) -> None:
    # Kafka names metrics after topics, with '_' in the place of '.': it refuses the second of two.
    taken: dict[str, str] = {}
    for topic in topics:
        other = taken.setdefault(topic.name.replace(".", "_"), topic.name)
        if other != topic.name:
            raise ValueError(
                f"the topics {other} and {topic.name} differ only in '.' and '_', which Kafka"
                " refuses: rename one of the events"
            )


def _of_consumer(
    settings: KafkaSettings, registry: EventRegistry, subscription: Subscription
) -> Iterator[Topic]:
    # A forwarded message carries more headers than it had: it must still fit.
    roomy = {"max.message.bytes": str(forwarded_limit(settings))}
    for origin in subscription.topics(registry):
        yield _topic(
            settings,
            dead_letter_topic(origin, subscription.name),
            settings.kafka_dlq_retention_hours,
            {"segment.ms": _milliseconds(DEAD_LETTER_SEGMENT), **roomy},
        )
        passing = [replay_topic(origin, subscription.name)]
        passing += [
            retry_topic(origin, subscription.name, delay)
            for delay in subscription.retry.retry_after
        ]
        for name in passing:
            yield _topic(settings, name, settings.kafka_topic_retention_hours, roomy)


def forwarded_limit(settings: KafkaSettings) -> int:
    """The size, in bytes, up to which a message can go to a retry or dead letter topic."""
    return settings.kafka_max_message_bytes + FORWARDED_HEADROOM_BYTES


def _topic(
    settings: KafkaSettings, name: str, retention_hours: int, config: dict[str, str] | None = None
) -> Topic:
    return Topic(
        name,
        settings.kafka_topic_partitions,
        settings.kafka_topic_replication_factor,
        {"retention.ms": _milliseconds(timedelta(hours=retention_hours)), **(config or {})},
    )


def _milliseconds(time: timedelta) -> str:
    return str(time // timedelta(milliseconds=1))


def _checked(topic: str) -> str:
    if len(topic) > TOPIC_MAX_LENGTH:
        raise ValueError(f"the topic name {topic} is longer than {TOPIC_MAX_LENGTH} characters")
    return topic
