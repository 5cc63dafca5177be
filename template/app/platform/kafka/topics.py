"""The topics of the service: their names and settings."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import NamedTuple

from app.platform.events.event import TOPIC_MAX_LENGTH, EventRegistry, TopicEvents
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription, check_names

# Kafka deletes whole segments, once their last record is old enough. Its default is a week.
DEAD_LETTER_SEGMENT = timedelta(days=1)
# The time that a dead letter may outlive its retention; Kafka checks every few minutes.
DEAD_LETTER_OVERTIME = DEAD_LETTER_SEGMENT + timedelta(hours=1)

# The headers of a failed message may add so much to its size.
FORWARDED_HEADROOM_BYTES = 1_000_000


@dataclass(frozen=True)
class Topic:
    """A topic that the service requires. `config` has Kafka's own settings.

    `owner` is the service of a foreign event; None means this service.
    """

    name: str
    partitions: int
    replication_factor: int
    config: dict[str, str] = field(default_factory=dict)
    owner: str | None = None


def dead_letter_topic(topic: str, consumer: str) -> str:
    return _check_length(f"{topic}.{consumer}.dlq")


def replay_topic(topic: str, consumer: str) -> str:
    """Return the topic of `app dlq replay`, which only the consumer of the failures reads."""
    return _check_length(f"{topic}.{consumer}.replay")


def retry_topic(topic: str, consumer: str, delay: timedelta) -> str:
    return _check_length(f"{topic}.{consumer}.retry.{format_delay(delay)}")


def group_of(consumer: str, settings: KafkaSettings) -> str:
    """Return the consumer group of `consumer`."""
    return f"{settings.kafka_group_id}.{consumer}"


class FailureTopic(NamedTuple):
    """A topic for messages that failed in a consumer: of dead letters, of a delay, or of replays."""

    name: str
    origin: str
    consumer: str
    kind: str

    @property
    def is_dead_letter(self) -> bool:
        return self.kind == "dlq"


# The topic of an event may have any number of dots, a consumer's name has none.
_FAILURE_TOPIC = re.compile(
    r"(?P<origin>.+)\.(?P<consumer>[a-z0-9][a-z0-9-]*)\.(?:(?P<kind>dlq|replay)|retry\.\d+[smh])"
)


def failure_topic(name: str) -> FailureTopic | None:
    """Parse the name of a failure topic; return None for other topics.

    An event's topic may be named like one. Where the origin is known, compare with that instead.
    """
    found = _FAILURE_TOPIC.fullmatch(name)
    if found is None:
        return None
    return FailureTopic(name, found["origin"], found["consumer"], found["kind"] or "retry")


def is_delay_topic(topic: str, origin: str) -> bool:
    """Return whether `retry_topic` made the name, for messages that came from `origin`."""
    found = failure_topic(topic)
    return found is not None and (found.origin, found.kind) == (origin, "retry")


def is_replay_topic(topic: str, origin: str) -> bool:
    """Return whether `replay_topic` made the name, for messages that came from `origin`."""
    found = failure_topic(topic)
    return found is not None and (found.origin, found.kind) == (origin, "replay")


def reads_from_earliest(topic: str, origin: str, settings: KafkaSettings) -> bool:
    """Return whether a consumer without a committed offset reads the existing messages of `topic`.

    Failed messages are never skipped; KAFKA_AUTO_OFFSET_RESET is for the topics of events only.
    """
    return topic != origin or settings.kafka_auto_offset_reset == "earliest"


def format_delay(delay: timedelta) -> str:
    """Format a delay for people: 5s, 10m, 2h."""
    seconds = int(delay.total_seconds())
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def source_topics(subscription: Subscription, registry: EventRegistry) -> dict[str, str]:
    """Map each topic that the subscription reads to the topic its messages first came from."""
    found = {}
    for topic in subscription.topics(registry):
        found[topic] = topic
        found[replay_topic(topic, subscription.name)] = topic
        for delay in subscription.retry.retry_after:
            found[retry_topic(topic, subscription.name, delay)] = topic
    return found


def required_topics(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> list[Topic]:
    """Return the topics that the service owns: of its events, and of its consumers' failures.

    Raises ValueError if names of consumers or topics collide.
    """
    check_names(subscriptions)
    topics = event_topics(settings, registry)
    for subscription in subscriptions:
        topics += _consumer_topics(settings, registry, subscription)
    _check_distinct([*topics, *foreign_topics(settings, registry)])
    return topics


def event_topics(settings: KafkaSettings, registry: EventRegistry) -> list[Topic]:
    """Return the topics of this service's own events."""
    return [_event_topic(settings, topic) for topic in registry.topics if topic.owner is None]


def foreign_topics(settings: KafkaSettings, registry: EventRegistry) -> list[Topic]:
    """Return the topics of other services' events, as development and tests create them."""
    return [
        Topic(
            topic.name,
            settings.kafka_topic_partitions,
            settings.kafka_topic_replication_factor,
            owner=topic.owner,
        )
        for topic in registry.topics
        if topic.owner is not None
    ]


def missing_foreign(topic: str, owner: str) -> str:
    """Return the message about a foreign topic that does not exist."""
    return f"missing topic {topic} of the service {owner}, which has to create it"


def _check_distinct(topics: Iterable[Topic]) -> None:
    # Kafka names metrics after topics, with '_' for '.', and refuses a second topic of that name.
    taken: dict[str, str] = {}
    for topic in topics:
        name = topic.name.replace(".", "_")
        other = taken.get(name)
        taken[name] = topic.name
        if other == topic.name:
            raise ValueError(
                f"the topic {topic.name} is both an event's and one for a consumer's failures: rename"
                " the event or the consumer"
            )
        if other is not None:
            raise ValueError(
                f"the topics {other} and {topic.name} differ only in '.' and '_', which Kafka"
                " refuses: rename one of the events"
            )


def _consumer_topics(
    settings: KafkaSettings, registry: EventRegistry, subscription: Subscription
) -> Iterator[Topic]:
    # A forwarded message has more headers than before, and must still fit.
    roomy = {"max.message.bytes": str(forwarded_limit(settings))}
    for origin in subscription.topics(registry):
        yield _topic(
            settings,
            dead_letter_topic(origin, subscription.name),
            settings.kafka_dlq_retention_hours,
            {"segment.ms": _milliseconds(DEAD_LETTER_SEGMENT), **roomy},
        )
        forwarding = [replay_topic(origin, subscription.name)]
        forwarding += [
            retry_topic(origin, subscription.name, delay)
            for delay in subscription.retry.retry_after
        ]
        for name in forwarding:
            yield _topic(settings, name, settings.kafka_topic_retention_hours, roomy)


def forwarded_limit(settings: KafkaSettings) -> int:
    """Return the largest size, in bytes, of a message for a failure topic."""
    return settings.kafka_max_message_bytes + FORWARDED_HEADROOM_BYTES


def _event_topic(settings: KafkaSettings, topic: TopicEvents) -> Topic:
    found = _topic(settings, topic.name, settings.kafka_topic_retention_hours)
    if topic.declared is not None and topic.declared.compacted:
        return replace(found, config={"cleanup.policy": "compact"})
    return found


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


def _check_length(topic: str) -> str:
    if len(topic) > TOPIC_MAX_LENGTH:
        raise ValueError(
            f"the topic name {topic} is longer than {TOPIC_MAX_LENGTH} characters: shorten the names of"
            " the event's topic or the consumer"
        )
    return topic
