"""The meaning of Kafka's errors for a message, and the topics that refuse messages now."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from enum import Enum, auto

import structlog
from aiokafka import errors as kafka_errors

from app.platform.health import Unhealthy
from app.platform.kafka import metrics
from app.platform.kafka.client import (
    Client,
    InvalidRecordError,
    NotSentError,
    choose_partition,
    is_led,
    knows,
    partitions_of,
)
from app.platform.kafka.codec import Message
from app.platform.kafka.errors import BrokerUnavailable, SendError, TopicUnavailable, UnknownTopic

log = structlog.get_logger(__name__)

# Before each question for a topic. The first answer may have been under way before the question, and
# a topic that was made a moment ago is not known to every broker yet.
_PAUSES = (0.0, 0.0, 0.1, 0.2, 0.2)


class Meaning(Enum):
    """The party at fault for an error. Only a record's own fault is never waited for."""

    RECORD = auto()  # this record has a size or a format that its topic does not take
    PRODUCER = auto()  # the client is of no use any more: it is replaced
    TOPIC = auto()  # the topic refuses messages for now, whatever is in them
    BROKER = auto()  # no broker answers, or the answer is that it cannot yet
    BEHIND = auto()  # not sent, because an earlier message was refused
    UNFORESEEN = auto()  # the client failed: it is replaced, in case the reason lies there


_MEANINGS: Mapping[type[kafka_errors.KafkaError], Meaning] = {
    # The same bytes are refused until somebody changes the topic.
    kafka_errors.MessageSizeTooLargeError: Meaning.RECORD,
    kafka_errors.RecordListTooLargeError: Meaning.RECORD,
    InvalidRecordError: Meaning.RECORD,
    # Sequence numbers that do not fit the broker's: each later message would be refused.
    kafka_errors.ProducerFenced: Meaning.PRODUCER,
    kafka_errors.OutOfOrderSequenceNumber: Meaning.PRODUCER,
    kafka_errors.InvalidProducerEpoch: Meaning.PRODUCER,
    kafka_errors.InvalidProducerIdMapping: Meaning.PRODUCER,
    kafka_errors.UnknownProducerId: Meaning.PRODUCER,
    kafka_errors.ProducerClosed: Meaning.PRODUCER,
    # Rights are given and taken while services run.
    kafka_errors.TopicAuthorizationFailedError: Meaning.TOPIC,
    kafka_errors.ClusterAuthorizationFailedError: Meaning.TOPIC,
    # A clock is set right, here or at the broker. The client stamps a message when it sends it.
    kafka_errors.InvalidTimestampError: Meaning.TOPIC,
    # A policy of the cluster, or a quota, is not about one record.
    kafka_errors.PolicyViolationError: Meaning.TOPIC,
    # Too few replicas are in sync, or none leads the partition.
    kafka_errors.NotEnoughReplicasError: Meaning.TOPIC,
    kafka_errors.NotEnoughReplicasAfterAppendError: Meaning.TOPIC,
    kafka_errors.NotLeaderForPartitionError: Meaning.TOPIC,
    kafka_errors.LeaderNotAvailableError: Meaning.TOPIC,
    kafka_errors.KafkaStorageError: Meaning.TOPIC,
    # The topic is made, or made anew.
    kafka_errors.UnknownTopicOrPartitionError: Meaning.TOPIC,
    kafka_errors.InvalidTopicError: Meaning.TOPIC,
    # Its checksum was wrong on arrival: damaged on the way, not by its own format.
    kafka_errors.CorruptRecordException: Meaning.TOPIC,
    # These are about what client and broker can do together: a change of either heals them.
    kafka_errors.UnsupportedForMessageFormatError: Meaning.TOPIC,
    kafka_errors.UnsupportedVersionError: Meaning.TOPIC,
    kafka_errors.InvalidRequiredAcksError: Meaning.TOPIC,
    kafka_errors.InvalidRequestError: Meaning.TOPIC,
    NotSentError: Meaning.BEHIND,
    kafka_errors.KafkaTimeoutError: Meaning.BROKER,
}

# A topic that nobody has sent to for so long may take messages again.
_REMEMBERED_SECONDS = 10.0


class Obstacles:
    """The known obstacles to messages before they are handed over."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._refusals: dict[str, SendError] = {}
        self._leaderless: set[str] = set()

    def before(self, message: Message) -> SendError | None:
        """The error with which `message` ends at once."""
        topic = message.topic
        if topic in self._leaderless:
            partitions, led = partitions_of(self._client, topic)
            partition = choose_partition(message.key, partitions, led)
            if partition not in led:
                reason = f"{topic}: no broker leads partition {partition}"
                return TopicUnavailable(topic, reason, "LeaderNotAvailableError")
        return self._refusals.get(topic)

    async def look_up(self, topic: str, seconds: float) -> None:
        """Ask the broker for a topic that is not known whole."""
        try:
            async with asyncio.timeout(seconds):
                await self._ask(topic)
        except TimeoutError:
            self._refusals[topic] = BrokerUnavailable("no broker answers")
        if is_led(self._client, topic):
            return
        if knows(self._client, topic):
            self._leaderless.add(topic)
        elif topic in self._client.client.cluster.unauthorized_topics:
            kind = kafka_errors.TopicAuthorizationFailedError.__name__
            self._refusals.setdefault(topic, TopicUnavailable(topic, f"{topic}: {kind}", kind))
        else:
            self._refusals.setdefault(topic, UnknownTopic(topic))

    async def _ask(self, topic: str) -> None:
        self._client.client.add_topic(topic)
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            if not await self._client.client.force_metadata_update():
                self._refusals[topic] = BrokerUnavailable("no broker answers")
            if is_led(self._client, topic):
                return


async def obstacles(client: Client, topics: Iterable[str], seconds: float) -> Obstacles:
    """Look up those of `topics` that are not known whole, for up to `seconds`."""
    found = Obstacles(client)
    doubtful = [topic for topic in topics if not is_led(client, topic)]
    if doubtful:
        await asyncio.gather(*(found.look_up(topic, seconds) for topic in doubtful))
    return found


def meaning_of(error: BaseException) -> Meaning:
    """Classify `error`, with which a send ended."""
    if meaning := _MEANINGS.get(type(error)):
        return meaning
    if getattr(error, "retriable", False):
        return Meaning.BROKER
    # A refusal that this list does not name, such as one of a newer broker, is waited for, too.
    return (
        Meaning.TOPIC if isinstance(error, kafka_errors.BrokerResponseError) else Meaning.UNFORESEEN
    )


class RefusingTopics:
    """The topics that refuse messages, each with the reason."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._until: dict[str, float] = {}

    def refused(self, error: TopicUnavailable) -> None:
        if error.topic not in self._reasons:
            log.warning("topic refuses messages", topic=error.topic, reason=str(error))
        metrics.topic_refusals.labels(error.topic, error.kind).inc()
        self._reasons[error.topic] = str(error)
        self._until[error.topic] = time.monotonic() + _REMEMBERED_SECONDS

    def took(self, topic: str) -> None:
        """A message was delivered to `topic`."""
        if self._reasons and self._reasons.pop(topic, ""):
            log.info("topic takes messages again", topic=topic)

    async def check(self) -> None:
        """Raises Unhealthy for as long as a topic refuses what is sent to it."""
        now = time.monotonic()
        for topic in [topic for topic in self._reasons if self._until[topic] < now]:
            del self._reasons[topic]
        if self._reasons:
            raise Unhealthy("; ".join(self._reasons.values()))
