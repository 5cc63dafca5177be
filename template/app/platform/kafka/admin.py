"""The broker's topics and groups: comparing and creating topics, committed offsets, and reading."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupLoadInProgressError, KafkaError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from app.platform.kafka.errors import BrokerUnavailable, MessagingError
from app.platform.kafka.settings import KafkaSettings, client_options, consumer_options, reason_for
from app.platform.kafka.topics import Topic

# Kafka protocol error codes
_TOPIC_AUTHORIZATION_FAILED = 29
_TOPIC_ALREADY_EXISTS = 36

POLL_SECONDS = 0.5
STALL_SECONDS = 30.0
COORDINATOR_SECONDS, COORDINATOR_POLL_SECONDS = 10.0, 0.1


class TopicCreationFailed(MessagingError):
    """The broker did not create all topics. The message names the others, with the reasons."""


class TopicsUnreadable(MessagingError):
    """The broker does not describe some topics or their settings. The message names them and why."""


class State(StrEnum):
    """The state of a topic on the broker, compared with the one that the service requires."""

    PRESENT = "present"
    MISSING = "missing"
    HIDDEN = "hidden"
    DIFFERENT = "different"


@dataclass(frozen=True)
class TopicState:
    """A required topic, and its state on the broker."""

    topic: Topic
    state: State
    detail: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the service cannot use it so. Of a foreign topic, only the existence counts."""
        exists = self.state in (State.PRESENT, State.DIFFERENT)
        return not exists if self.topic.owner is not None else self.state is not State.PRESENT


async def hidden_topics(client: AIOKafkaClient, topics: Iterable[str]) -> list[str]:
    """Return those of `topics` that the user may not describe; only the broker knows if they exist.

    The list of all topics omits them, as if they did not exist.
    """
    names = list(topics)
    if not names:
        return []
    request = MetadataRequest(names, allow_auto_topic_creation=False)
    answer = await client.send(client.get_random_node(), request)
    return [name for code, name, *_ in answer.topics if code == _TOPIC_AUTHORIZATION_FAILED]


def not_authorized(topics: Iterable[str]) -> str:
    """Return the error message for `hidden_topics`."""
    return f"not authorized to describe {', '.join(topics)}: grant this user DESCRIBE on them"


class TopicAdmin:
    """A client that inspects and creates topics, and reads the offsets of groups."""

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
        described = await self._describe([topic.name for topic in topics])
        hidden = await self._find_hidden(
            topic.name for topic in topics if topic.name not in described
        )
        configs = await self._fetch_configs([topic for topic in topics if topic.name in described])
        return [
            TopicState(topic, State.HIDDEN, "not authorized to describe it")
            if topic.name in hidden
            else _compare(topic, described.get(topic.name), configs.get(topic.name, {}))
            for topic in topics
        ]

    async def _describe(self, names: Sequence[str]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Map each existing topic of `names` to its partitions."""
        existing = set(await self._client.list_topics())
        asked = [name for name in names if name in existing]
        found = await self._client.describe_topics(asked) if asked else []
        return {topic["topic"]: topic["partitions"] for topic in found}

    async def _find_hidden(self, names: Iterable[str]) -> list[str]:
        return await hidden_topics(self._client._client, names)  # the admin client has no such call

    async def _fetch_configs(self, topics: Sequence[Topic]) -> dict[str, dict[str, str]]:
        """Fetch the broker's settings of each of `topics`; a mock broker has none."""
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
                    refused[name] = _error_text(code, message)
                found[name] = {key: value for key, value, *_ in entries}
        if refused:
            raise TopicsUnreadable(f"settings of topics cannot be read: {_join_reasons(refused)}")
        return found

    async def names(self) -> list[str]:
        """Return all topics that the user may describe."""
        return list(await self._client.list_topics())

    async def groups(self) -> set[str]:
        """Return all consumer groups that the user may describe; a mock broker has none."""
        if not await self._has_controller():
            return set()
        return {name for name, *_ in await self._client.list_consumer_groups()}

    async def committed_offsets(
        self,
        group: str,
        partitions: Sequence[TopicPartition],
        max_wait: float = COORDINATOR_SECONDS,
    ) -> dict[TopicPartition, int]:
        """Fetch the offsets that `group` has committed in `partitions`; omit those without one.

        They expire a week after the group's last member left. For `max_wait` seconds, wait for a new
        cluster to create the topic of the offsets, and for a new coordinator to load it.
        Raises KafkaError.
        """
        if not partitions:
            return {}
        deadline = time.monotonic() + max_wait
        while True:
            try:
                found = await self._client.list_consumer_group_offsets(
                    group, partitions=[*partitions]
                )
                # aiokafka ignores an error of the answer as a whole, which then has no partition.
                # Otherwise it has each of them, with -1 where nothing is committed.
                if found.keys() >= set(partitions):
                    return {tp: entry.offset for tp, entry in found.items() if entry.offset >= 0}
                failure: KafkaError = GroupLoadInProgressError(
                    f"the broker returned no offsets of {group}: try again, or grant this user"
                    " DESCRIBE on the group"
                )
            except KafkaError as error:
                failure = error
            if not failure.retriable or time.monotonic() >= deadline:
                raise failure
            await asyncio.sleep(COORDINATOR_POLL_SECONDS)

    async def has_members(self, group: str) -> bool:
        """Return whether a consumer is a member of the group."""
        (answer,) = await self._client.describe_consumer_groups([group])
        return any(described[5] for described in answer.groups)

    async def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """Return the partitions of those of `topics` that exist.

        Raises TopicsUnreadable if the user may not describe one of them, because its messages would be
        missing without notice.
        """
        described = await self._describe(topics)
        if hidden := await self._find_hidden(name for name in topics if name not in described):
            raise TopicsUnreadable(not_authorized(hidden))
        return [
            TopicPartition(name, partition["partition"])
            for name, partitions in described.items()
            for partition in partitions
        ]

    async def create(self, topics: Sequence[Topic]) -> list[str]:
        """Create those of `topics` that are missing; return their names.

        Existing topics do not change. Raises TopicCreationFailed.
        """
        existing = set(await self._client.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if not missing:
            return []
        if not await self._has_controller():
            # A mock broker has neither a controller nor CreateTopics: it creates what is described.
            await self._client.describe_topics([topic.name for topic in missing])
            return [topic.name for topic in missing]
        answer = await self._client.create_topics([_new_topic(topic) for topic in missing])
        outcomes = {name: (code, message) for name, code, message in answer.topic_errors}
        failed = {
            name: _error_text(code, message)
            for name, (code, message) in outcomes.items()
            if code not in (0, _TOPIC_ALREADY_EXISTS)
        }
        if failed:
            raise TopicCreationFailed(f"topics not created: {_join_reasons(failed)}")
        # Topics that others created meanwhile, or that exist hidden from this user, do not count.
        return [topic.name for topic in missing if outcomes[topic.name][0] == 0]

    async def _has_controller(self) -> bool:
        cluster = await self._client.describe_cluster()
        return cluster["controller_id"] in {broker["node_id"] for broker in cluster["brokers"]}


async def provision(settings: KafkaSettings, topics: Sequence[Topic]) -> list[str]:
    """Connect, create the missing ones of `topics`, and return their names."""
    async with TopicAdmin.connected(settings) as admin:
        return await admin.create(topics)


def _compare(
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
        yield f"{len(partitions)} partitions, expected {topic.partitions}"
    replicas = {len(partition["replicas"]) for partition in partitions}
    for count in sorted(replicas - {topic.replication_factor}):
        yield f"replication {count}, expected {topic.replication_factor}"
    for name, value in topic.config.items():
        if config.get(name, value) != value:
            yield f"{name} {config[name]}, expected {value}"


def _error_text(code: int, message: str | None) -> str:
    return f"{for_code(code).__name__}{': ' + message if message else ''}"


def _join_reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _new_topic(topic: Topic) -> NewTopic:
    return NewTopic(
        topic.name,
        num_partitions=topic.partitions,
        replication_factor=topic.replication_factor,
        topic_configs=topic.config,
    )


@asynccontextmanager
async def reading(
    settings: KafkaSettings, topics: Sequence[str]
) -> AsyncIterator[AIOKafkaConsumer]:
    """Open a consumer without a group on all partitions of those of `topics` that exist.

    It is not started if there are none. Raises BrokerUnavailable when no broker answers.
    """
    async with TopicAdmin.connected(settings) as admin:
        partitions = await admin.partitions(topics)
    # Messages that retention deletes meanwhile are skipped.
    client = AIOKafkaConsumer(**consumer_options(settings), auto_offset_reset="earliest")
    try:
        if partitions:  # aiokafka raises CancelledError when it stops a consumer that has none
            await _start(client, settings)
            await asyncio.sleep(0)  # its tasks begin; stop() raises CancelledError if they have not
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
    """Yield every record from the beginning up to the present ends of the partitions."""
    partitions = sorted(client.assignment())
    if not partitions:
        return
    starts = await client.beginning_offsets(partitions)
    ends = await client.end_offsets(partitions)
    for tp, start in starts.items():
        client.seek(tp, start)
    left = {tp for tp in partitions if starts[tp] < ends[tp]}
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


async def seek_to(client: AIOKafkaConsumer, from_beginning: bool) -> None:
    """Position the client at the next record that arrives, or `from_beginning` at the oldest."""
    partitions = sorted(client.assignment())
    if from_beginning:
        await client.seek_to_beginning(*partitions)
    else:
        await client.seek_to_end(*partitions)


async def follow(client: AIOKafkaConsumer) -> AsyncIterator[ConsumerRecord]:
    """Yield records as they arrive, for ever."""
    while True:
        for records in (await client.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
            for record in records:
                yield record
