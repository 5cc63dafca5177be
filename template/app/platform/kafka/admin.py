"""Topics on the broker: which exist, which are missing or differ, making them, and reading them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from app.platform.kafka.errors import BrokerUnavailable, MessagingError
from app.platform.kafka.settings import KafkaSettings, client_options, consumer_options, reason_for
from app.platform.kafka.topics import Topic

# Kafka protocol error codes
_TOPIC_AUTHORIZATION_FAILED = 29
_TOPIC_ALREADY_EXISTS = 36


class TopicCreationFailed(MessagingError):
    """The broker made some of the topics, but not all. The message names the others and why."""


class TopicsUnreadable(MessagingError):
    """The broker does not describe some topics, or their settings. The message names them and why."""


class State(StrEnum):
    """The state of a topic on the broker, compared with what the service wants."""

    PRESENT = "present"
    MISSING = "missing"
    HIDDEN = "hidden"
    DIFFERENT = "different"


@dataclass(frozen=True)
class TopicState:
    """A wanted topic, and what the broker has of it."""

    topic: Topic
    state: State
    detail: str = ""


async def hidden_topics(client: AIOKafkaClient, topics: Iterable[str]) -> list[str]:
    """Those of `topics` that the user may not describe; only the broker knows whether they exist.

    In the list of all topics they are left out, as if there were none of that name.
    """
    names = list(topics)
    if not names:
        return []
    request = MetadataRequest(names, allow_auto_topic_creation=False)
    answer = await client.send(client.get_random_node(), request)
    return [name for code, name, *_ in answer.topics if code == _TOPIC_AUTHORIZATION_FAILED]


def not_authorized(topics: Iterable[str]) -> str:
    """Describe `hidden_topics`."""
    return f"not authorized to describe {', '.join(topics)}: grant this user DESCRIBE on them"


class TopicAdmin:
    """Looks at and makes topics."""

    def __init__(self, client: AIOKafkaAdminClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def connected(cls, settings: KafkaSettings) -> AsyncIterator["TopicAdmin"]:
        """Raises BrokerUnavailable when no broker answers."""
        client = AIOKafkaAdminClient(**client_options(settings))
        try:
            await client.start()
        except KafkaError as error:
            await client.close()
            raise BrokerUnavailable(
                f"cannot connect to Kafka: {await reason_for(error, settings)}"
            ) from error
        try:
            yield cls(client)
        finally:
            await client.close()

    async def compare(self, topics: Sequence[Topic]) -> list[TopicState]:
        """Compare `topics` with those of the broker. Raises TopicsUnreadable."""
        described = await self._described([topic.name for topic in topics])
        hidden = await self._hidden(topic.name for topic in topics if topic.name not in described)
        configs = await self._configs([topic for topic in topics if topic.name in described])
        return [
            TopicState(topic, State.HIDDEN, "not authorized to describe it")
            if topic.name in hidden
            else _compared(topic, described.get(topic.name), configs.get(topic.name, {}))
            for topic in topics
        ]

    async def _described(self, names: Sequence[str]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """The partitions of those of the topics that exist, by topic."""
        existing = set(await self._client.list_topics())
        asked = [name for name in names if name in existing]
        found = await self._client.describe_topics(asked) if asked else []
        return {topic["topic"]: topic["partitions"] for topic in found}

    async def _hidden(self, names: Iterable[str]) -> list[str]:
        return await hidden_topics(self._client._client, names)  # it has no call of its own

    async def _configs(self, topics: Sequence[Topic]) -> dict[str, dict[str, str]]:
        """Fetch the broker's values of the settings of each of `topics`; a mock tells none."""
        asked = [
            ConfigResource(ConfigResourceType.TOPIC, topic.name, topic.config)
            for topic in topics
            if topic.config
        ]
        if not asked or not await self._has_controller():
            return {}
        found, refused = {}, {}
        for answer in await self._client.describe_configs(asked):
            for code, message, _type, name, entries in answer.resources:
                if code:
                    refused[name] = _reason(code, message)
                found[name] = {key: value for key, value, *_ in entries}
        if refused:
            raise TopicsUnreadable(f"settings of topics cannot be read: {_told(refused)}")
        return found

    async def names(self) -> list[str]:
        """All topics that the user may describe."""
        return list(await self._client.list_topics())

    async def groups(self) -> set[str]:
        """All consumer groups that the user may describe; a mock has none."""
        if not await self._has_controller():
            return set()
        return {name for name, *_ in await self._client.list_consumer_groups()}

    async def committed(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """The offsets that the group has committed of those of `topics` that exist.

        They expire a week after the group's last member left. Raises TopicsUnreadable.
        """
        partitions = await self.partitions(topics)
        if not partitions:
            return {}
        found = await self._client.list_consumer_group_offsets(group, partitions=partitions)
        # aiokafka overlooks an error of the answer as a whole: then nothing is in it.
        if not found.keys() >= set(partitions):
            raise TopicsUnreadable(f"the broker does not tell the offsets of {group}: try again")
        return {place: entry.offset for place, entry in found.items() if entry.offset >= 0}

    async def has_members(self, group: str) -> bool:
        """Whether a consumer is in the group."""
        (answer,) = await self._client.describe_consumer_groups([group])
        return any(described[5] for described in answer.groups)

    async def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """The partitions of those of `topics` that exist.

        Raises TopicsUnreadable when the user may not describe one of them: what is in it would be
        left out without a word.
        """
        described = await self._described(topics)
        if hidden := await self._hidden(name for name in topics if name not in described):
            raise TopicsUnreadable(not_authorized(hidden))
        return [
            TopicPartition(name, partition["partition"])
            for name, partitions in described.items()
            for partition in partitions
        ]

    async def create(self, topics: Sequence[Topic]) -> list[str]:
        """Make those of `topics` that are missing; return their names.

        Existing topics are left as they are. Raises TopicCreationFailed.
        """
        existing = set(await self._client.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if not missing:
            return []
        if not await self._has_controller():
            # A mock broker names none, and has no CreateTopics: it makes topics it is asked for.
            await self._client.describe_topics([topic.name for topic in missing])
            return [topic.name for topic in missing]
        answer = await self._client.create_topics([_new(topic) for topic in missing])
        outcomes = {name: (code, message) for name, code, message in answer.topic_errors}
        failed = {
            name: _reason(code, message)
            for name, (code, message) in outcomes.items()
            if code not in (0, _TOPIC_ALREADY_EXISTS)
        }
        if failed:
            raise TopicCreationFailed(f"topics not created: {_told(failed)}")
        # One that others made meanwhile, or that was there and is hidden from this user, is not ours.
        return [topic.name for topic in missing if outcomes[topic.name][0] == 0]

    async def _has_controller(self) -> bool:
        cluster = await self._client.describe_cluster()
        return cluster["controller_id"] in {broker["node_id"] for broker in cluster["brokers"]}


async def provision(settings: KafkaSettings, topics: Sequence[Topic]) -> list[str]:
    """Connect, make the missing ones of `topics`, and return their names."""
    async with TopicAdmin.connected(settings) as admin:
        return await admin.create(topics)


def _compared(
    topic: Topic, partitions: Sequence[Mapping[str, Any]] | None, config: Mapping[str, str]
) -> TopicState:
    if partitions is None:
        return TopicState(topic, State.MISSING)
    differences = "; ".join(_differences(topic, partitions, config))
    return TopicState(topic, State.DIFFERENT if differences else State.PRESENT, differences)


def _differences(
    topic: Topic, partitions: Sequence[Mapping[str, Any]], config: Mapping[str, str]
) -> Iterator[str]:
    if len(partitions) != topic.partitions:
        yield f"{len(partitions)} partitions, wanted {topic.partitions}"
    replicas = {len(partition["replicas"]) for partition in partitions}
    for count in sorted(replicas - {topic.replication_factor}):
        yield f"replication {count}, wanted {topic.replication_factor}"
    for name, value in topic.config.items():
        if config.get(name, value) != value:
            yield f"{name} {config[name]}, wanted {value}"


def _reason(code: int, message: str | None) -> str:
    return f"{for_code(code).__name__}{': ' + message if message else ''}"


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _new(topic: Topic) -> NewTopic:
    return NewTopic(
        topic.name,
        num_partitions=topic.partitions,
        replication_factor=topic.replication_factor,
        topic_configs=topic.config,
    )


POLL_SECONDS = 0.5
STALL_SECONDS = 30.0


@asynccontextmanager
async def reading(
    settings: KafkaSettings, topics: Sequence[str]
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, on all partitions of those of `topics` that exist.

    It is not even started if there are none. Raises BrokerUnavailable when no broker answers.
    """
    async with TopicAdmin.connected(settings) as admin:
        partitions = await admin.partitions(topics)
    # What retention deletes meanwhile is passed; the rest is read.
    client = AIOKafkaConsumer(**consumer_options(settings), auto_offset_reset="earliest")
    try:
        if partitions:  # aiokafka raises CancelledError when it stops one without any
            await _start(client, settings)
            client.assign(partitions)
        yield client
    finally:
        await client.stop()


async def _start(client: AIOKafkaConsumer, settings: KafkaSettings) -> None:
    try:
        await client.start()
    except KafkaError as error:
        raise BrokerUnavailable(
            f"cannot connect to Kafka: {await reason_for(error, settings)}"
        ) from error


async def read_to_end(client: AIOKafkaConsumer) -> AsyncIterator[ConsumerRecord]:
    """Every record from the beginning up to where the partitions end now."""
    wanted = sorted(client.assignment())
    if not wanted:
        return
    starts = await client.beginning_offsets(wanted)
    ends = await client.end_offsets(wanted)
    for tp, start in starts.items():
        client.seek(tp, start)
    left = {tp for tp in wanted if starts[tp] < ends[tp]}
    while left:
        async with asyncio.timeout(STALL_SECONDS):
            fetched = await client.getmany(*left, timeout_ms=int(POLL_SECONDS * 1000))
        for tp, records in fetched.items():
            for record in records:
                if record.offset < ends[tp]:
                    yield record
        for tp in list(left):
            if await client.position(tp) >= ends[tp]:
                left.discard(tp)


async def follow(client: AIOKafkaConsumer, from_beginning: bool) -> AsyncIterator[ConsumerRecord]:
    """Records as they come, for ever; from the next one on, unless `from_beginning`."""
    wanted = sorted(client.assignment())
    if not wanted:
        return
    if from_beginning:
        await client.seek_to_beginning(*wanted)
    else:
        await client.seek_to_end(*wanted)
    while True:
        for records in (await client.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
            for record in records:
                yield record
