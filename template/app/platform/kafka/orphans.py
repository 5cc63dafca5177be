"""Failure topics that no consumer reads any more, and the messages that wait in them.

They remain when a consumer is renamed or removed, when it stops handling an event, and when a delay is
removed from its policy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from aiokafka import TopicPartition

from app.platform.events.event import EventRegistry
from app.platform.kafka.admin import TopicAdmin
from app.platform.kafka.dead_letters import DeadLetter, read_dead_letters
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import FailureTopic, failure_topic, group_of, required_topics


async def orphaned_topics(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> list[FailureTopic]:
    """Return this service's failure topics that belong to none of the code's consumers.

    A topic's name does not say which service its consumer belongs to. The committed offsets of the
    consumer's group do, for as long as Kafka keeps them: a week after the last member left.
    Raises BrokerUnavailable.
    """
    known = {topic.name for topic in required_topics(settings, registry, subscriptions)}
    async with TopicAdmin.connected(settings) as admin:
        names = set(await admin.names())
        found = [topic for name in sorted(names - known) if (topic := failure_topic(name))]
        groups = await admin.groups() if found else set()
        read_topics: set[tuple[str, str]] = set()
        for consumer in {topic.consumer for topic in found}:
            group = group_of(consumer, settings)
            about = {n for t in found if t.consumer == consumer for n in (t.origin, t.name)}
            if group in groups:
                partitions = await admin.partitions(sorted(about & names))
                offsets = await admin.committed_offsets(group, partitions)
                read_topics |= {(consumer, tp.topic) for tp in offsets}
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
        return False  # it is another service's consumer of the same events
    own = topic.origin.startswith(f"{registry.service}.")
    return own or registry.events_on(topic.origin) is not None


async def read_orphaned(
    settings: KafkaSettings, topics: Iterable[FailureTopic]
) -> list[DeadLetter]:
    """Read the messages in `topics` that their consumer had not yet read when it ended."""
    chosen = list(topics)
    is_waiting = await waiting_filter(settings, chosen)
    letters = read_dead_letters(settings, [topic.name for topic in chosen])
    return [letter async for letter in letters if is_waiting(letter)]


async def waiting_filter(
    settings: KafkaSettings, topics: Iterable[FailureTopic]
) -> Callable[[DeadLetter], bool]:
    """Return a function that says whether the consumer of `topics` had not yet read a letter."""
    forwarding = [topic for topic in topics if not topic.is_dead_letter]
    consumed: dict[TopicPartition, int] = {}
    if forwarding:
        async with TopicAdmin.connected(settings) as admin:
            groups = await admin.groups()
            for topic in forwarding:
                if (group := group_of(topic.consumer, settings)) in groups:
                    partitions = await admin.partitions([topic.name])
                    consumed |= await admin.committed_offsets(group, partitions)
    names = {topic.name for topic in forwarding}
    return lambda letter: not _is_consumed(letter, consumed, names)


def _is_consumed(
    letter: DeadLetter, consumed: Mapping[TopicPartition, int], forwarding: set[str]
) -> bool:
    record = letter.record
    tp = TopicPartition(record.topic, record.partition)
    return record.topic in forwarding and record.offset < consumed.get(tp, 0)


async def has_members(settings: KafkaSettings, consumer: str) -> bool:
    """Return whether a process, perhaps of an older version of the service, still runs `consumer`."""
    async with TopicAdmin.connected(settings) as admin:
        group = group_of(consumer, settings)
        return group in await admin.groups() and await admin.has_members(group)
