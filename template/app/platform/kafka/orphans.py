"""Topics for failures that no consumer reads any more, and the messages that wait in them.

They are left behind when a consumer is renamed or removed, when it stops to handle an event, and when a
delay is taken from its policy.
"""

from collections.abc import Iterable, Mapping, Sequence

from aiokafka import TopicPartition

from app.platform.events.event import EventRegistry
from app.platform.kafka.admin import TopicAdmin
from app.platform.kafka.dlq import DeadLetter, read
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import FailureTopic, failure_topic, group_of, wanted


async def orphaned_topics(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> list[FailureTopic]:
    """The topics for failures that are this service's, and none of the code's. Raises BrokerUnavailable.

    A topic's name does not tell whose its consumer is. The offsets that the consumer's group
    committed do, as long as Kafka keeps them: a week after the group's last member has gone.
    """
    known = {topic.name for topic in wanted(settings, registry, subscriptions)}
    async with TopicAdmin.connected(settings) as admin:
        names = set(await admin.names())
        found = [topic for name in sorted(names - known) if (topic := failure_topic(name))]
        groups = await admin.groups() if found else set()
        read_topics: set[tuple[str, str]] = set()
        for consumer in {topic.consumer for topic in found}:
            group = group_of(consumer, settings)
            about = {n for t in found if t.consumer == consumer for n in (t.origin, t.name)}
            if group in groups:
                offsets = await admin.committed(group, sorted(about & names))
                read_topics |= {(consumer, place.topic) for place in offsets}
    return [
        topic
        for topic in found
        if not read_topics.isdisjoint({(topic.consumer, n) for n in (topic.origin, topic.name)})
        or _is_likely_ours(topic, groups, settings, registry)
    ]


def _is_likely_ours(
    topic: FailureTopic, groups: set[str], settings: KafkaSettings, registry: EventRegistry
) -> bool:
    others = groups - {group_of(topic.consumer, settings)}
    if any(group.endswith(f".{topic.consumer}") for group in others):
        return False  # another service's consumer, which reads the same events
    own = topic.origin.startswith(f"{registry.service}.")
    return own or registry.on_topic(topic.origin) is not None


async def read_orphaned(
    settings: KafkaSettings, topics: Iterable[FailureTopic]
) -> list[DeadLetter]:
    """Read the messages in `topics` that their consumer had not taken before it went."""
    chosen = list(topics)
    passing = [topic for topic in chosen if not topic.keeps]
    taken: dict[TopicPartition, int] = {}
    if passing:
        async with TopicAdmin.connected(settings) as admin:
            groups = await admin.groups()
            for topic in passing:
                if (group := group_of(topic.consumer, settings)) in groups:
                    taken |= await admin.committed(group, [topic.name])
    names = [topic.name for topic in chosen]
    return [
        letter
        async for letter in read(settings, names)
        if not _is_taken(letter, taken, {topic.name for topic in passing})
    ]


def _is_taken(letter: DeadLetter, taken: Mapping[TopicPartition, int], passing: set[str]) -> bool:
    record = letter.record
    place = TopicPartition(record.topic, record.partition)
    return record.topic in passing and record.offset < taken.get(place, 0)


async def has_members(settings: KafkaSettings, consumer: str) -> bool:
    """Whether a process still runs `consumer`, as one of an older version of the service may."""
    async with TopicAdmin.connected(settings) as admin:
        group = group_of(consumer, settings)
        return group in await admin.groups() and await admin.has_members(group)
