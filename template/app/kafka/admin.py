"""Topics on the broker: which exist, which are missing or differ, and making them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from app.kafka.errors import BrokerUnavailable, MessagingError
from app.kafka.security import client_options, reason_for
from app.kafka.settings import KafkaSettings
from app.kafka.topics import Topic

_TOPIC_ALREADY_EXISTS = 36  # Kafka protocol error code


class TopicCreationFailed(MessagingError):
    """The broker made some of the topics, but not all. The message names the others and why."""


class State(StrEnum):
    """How a topic on the broker compares with what the service wants."""

    PRESENT = "present"
    MISSING = "missing"
    DIFFERENT = "different"


@dataclass(frozen=True)
class TopicState:
    """A wanted topic, and what the broker has of it."""

    topic: Topic
    state: State
    detail: str = ""


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
        """What the broker has of each of `topics`."""
        existing = set(await self._client.list_topics())
        names = [topic.name for topic in topics if topic.name in existing]
        found = await self._client.describe_topics(names) if names else []
        described = {topic["topic"]: topic["partitions"] for topic in found}
        return [_compared(topic, described.get(topic.name)) for topic in topics]

    async def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """The partitions of those of `topics` that exist."""
        existing = set(await self._client.list_topics())
        names = [topic for topic in topics if topic in existing]
        found = await self._client.describe_topics(names) if names else []
        return [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in found
            for partition in topic["partitions"]
        ]

    async def create(self, topics: Sequence[Topic]) -> list[str]:
        """Make those of `topics` that are missing; return their names.

        Existing topics are left as they are. Raises TopicCreationFailed.
        """
        states = await self.compare(topics)
        missing = [state.topic for state in states if state.state is State.MISSING]
        if not missing:
            return []
        if not await self._has_controller():
            # A mock broker names none, and has no CreateTopics: it makes topics it is asked for.
            await self._client.describe_topics([topic.name for topic in missing])
            return [topic.name for topic in missing]
        answer = await self._client.create_topics([_new(topic) for topic in missing])
        failed = {
            name: f"{for_code(code).__name__}{': ' + message if message else ''}"
            for name, code, message in answer.topic_errors
            if code not in (0, _TOPIC_ALREADY_EXISTS)
        }
        if failed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise TopicCreationFailed(f"topics not created: {reasons}")
        return [topic.name for topic in missing]

    async def _has_controller(self) -> bool:
        cluster = await self._client.describe_cluster()
        return cluster["controller_id"] in {broker["node_id"] for broker in cluster["brokers"]}


async def provision(settings: KafkaSettings, topics: Sequence[Topic]) -> list[str]:
    """Connect, make the missing ones of `topics`, and return their names."""
    async with TopicAdmin.connected(settings) as admin:
        return await admin.create(topics)


def _compared(topic: Topic, partitions: list[dict[str, object]] | None) -> TopicState:
    if partitions is None:
        return TopicState(topic, State.MISSING)
    if len(partitions) != topic.partitions:
        detail = f"{len(partitions)} partitions, the settings say {topic.partitions}"
        return TopicState(topic, State.DIFFERENT, detail)
    return TopicState(topic, State.PRESENT)


def _new(topic: Topic) -> NewTopic:
    return NewTopic(
        topic.name,
        num_partitions=topic.partitions,
        replication_factor=topic.replication_factor,
        topic_configs=topic.config,
    )
