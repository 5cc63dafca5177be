"""Topics for failures that no consumer reads any more, and the messages that wait in them.

They are left behind when a consumer is renamed or removed, when it stops to handle an event, and when a
delay is taken from its policy.
"""

from collections.abc import Iterable, Mapping, Sequence

from aiokafka import TopicPartition

from app.kafka.admin import TopicAdmin
from app.kafka.dlq import DeadLetter, read
from app.kafka.event import EventRegistry
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.kafka.topics import FailureTopic, failure_topic, group_of, wanted


async def orphaned_topics(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> list[FailureTopic]:
    """The topics for failures that are this service's, and none of the code's. Raises BrokerUnavailable.

    A topic's name does not tell whose its consumer is. The offsets that the consumer's group
    committed do, as long as Kafka keeps them: a week after the group's last member has gone.
    """
    known = {topic.name for topic in wanted(settings, registry, subscriptions)}
    async with TopicAdmin.connected(settings) as admin:
        names = sorted(set(await admin.names()) - known)
        found = [topic for name in names if (topic := failure_topic(name)) is not None]
        groups = await admin.groups() if found else set()
        return [
            topic for topic in found if await _is_ours(topic, admin, groups, settings, registry)
        ]


async def _is_ours(
    topic: FailureTopic,
    admin: TopicAdmin,
    groups: set[str],
    settings: KafkaSettings,
    registry: EventRegistry,
) -> bool:
    group = group_of(topic.consumer, settings)
    if group in groups:
        read_topics = {tp.topic for tp in await admin.committed(group)}
        if read_topics & {topic.origin, topic.name}:
            return True
    if any(other.endswith(f".{topic.consumer}") for other in groups - {group}):
        return False  # another service's consumer, which reads the same events
    own = topic.origin.startswith(f"{registry.service}.")
    return own or registry.on_topic(topic.origin) is not None


async def read_orphaned(
    settings: KafkaSettings, topics: Iterable[FailureTopic]
) -> list[DeadLetter]:
    """What is in `topics`, but for what their consumer had taken from them before it went."""
    chosen = list(topics)
    passing = [topic for topic in chosen if not topic.keeps]
    taken: dict[TopicPartition, int] = {}
    if passing:
        async with TopicAdmin.connected(settings) as admin:
            groups = await admin.groups()
            for group in {group_of(topic.consumer, settings) for topic in passing} & groups:
                taken |= await admin.committed(group)
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
