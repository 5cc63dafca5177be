"""Refused messages: the fault behind each of Kafka's errors, and the topics that refuse at present."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
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

# The pause before each request for a topic's metadata. The first answer may be older than the request,
# and not every broker knows a new topic at once.
_PAUSES = (0.0, 0.0, 0.1, 0.2, 0.2)


class Fault(Enum):
    """The cause of an error. Waiting helps unless it is the record itself."""

    RECORD = auto()  # the topic does not accept the record's size or format
    PRODUCER = auto()  # the client cannot be used any more, and is replaced
    TOPIC = auto()  # the topic refuses all messages at present
    BROKER = auto()  # no broker answers, or it is not ready
    PREDECESSOR = auto()  # not sent, because an earlier message was refused
    UNKNOWN = auto()  # the client failed, and is replaced in case it is the cause


_FAULTS: Mapping[type[kafka_errors.KafkaError], Fault] = {
    # The topic refuses these bytes until its settings change.
    kafka_errors.MessageSizeTooLargeError: Fault.RECORD,
    kafka_errors.RecordListTooLargeError: Fault.RECORD,
    InvalidRecordError: Fault.RECORD,
    # The sequence numbers do not match the broker's, which would refuse all later messages.
    kafka_errors.ProducerFenced: Fault.PRODUCER,
    kafka_errors.OutOfOrderSequenceNumber: Fault.PRODUCER,
    kafka_errors.InvalidProducerEpoch: Fault.PRODUCER,
    kafka_errors.InvalidProducerIdMapping: Fault.PRODUCER,
    kafka_errors.UnknownProducerId: Fault.PRODUCER,
    kafka_errors.ProducerClosed: Fault.PRODUCER,
    # Permissions change while services run.
    kafka_errors.TopicAuthorizationFailedError: Fault.TOPIC,
    kafka_errors.ClusterAuthorizationFailedError: Fault.TOPIC,
    # Clocks are corrected, here or at the broker. The client sets the timestamp when it sends.
    kafka_errors.InvalidTimestampError: Fault.TOPIC,
    # Policies and quotas of the cluster concern all records.
    kafka_errors.PolicyViolationError: Fault.TOPIC,
    # Too few replicas are in sync, or none leads the partition.
    kafka_errors.NotEnoughReplicasError: Fault.TOPIC,
    kafka_errors.NotEnoughReplicasAfterAppendError: Fault.TOPIC,
    kafka_errors.NotLeaderForPartitionError: Fault.TOPIC,
    kafka_errors.LeaderNotAvailableError: Fault.TOPIC,
    kafka_errors.KafkaStorageError: Fault.TOPIC,
    # The topic is being created, perhaps again.
    kafka_errors.UnknownTopicOrPartitionError: Fault.TOPIC,
    kafka_errors.InvalidTopicError: Fault.TOPIC,
    # The checksum was wrong on arrival: damaged in transit, not malformed.
    kafka_errors.CorruptRecordException: Fault.TOPIC,
    # Client and broker are incompatible, until either is upgraded.
    kafka_errors.UnsupportedForMessageFormatError: Fault.TOPIC,
    kafka_errors.UnsupportedVersionError: Fault.TOPIC,
    kafka_errors.InvalidRequiredAcksError: Fault.TOPIC,
    kafka_errors.InvalidRequestError: Fault.TOPIC,
    NotSentError: Fault.PREDECESSOR,
    kafka_errors.KafkaTimeoutError: Fault.BROKER,
}

# A topic without new attempts for so long may have recovered.
_REMEMBERED_SECONDS = 10.0


class Obstacles:
    """Reasons not to send a message, known before the client gets it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._refusals: dict[str, SendError] = {}
        self._leaderless: set[str] = set()

    def error_for(self, message: Message) -> SendError | None:
        """Return the error of `message` if it cannot be sent now."""
        topic = message.topic
        if topic in self._leaderless:
            partitions, led = partitions_of(self._client, topic)
            partition = choose_partition(message.key, partitions, led)
            if partition not in led:
                reason = f"{topic}: no broker leads partition {partition}"
                return TopicUnavailable(topic, reason, "LeaderNotAvailableError")
        return self._refusals.get(topic)

    async def look_up(self, topic: str, seconds: float) -> None:
        """Ask the broker for a topic whose partitions or leaders are not all known."""
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


async def find_obstacles(client: Client, topics: Iterable[str], seconds: float) -> Obstacles:
    """Look up those of `topics` that are not fully known, for up to `seconds`."""
    found = Obstacles(client)
    unknown = [topic for topic in topics if not is_led(client, topic)]
    if unknown:
        await asyncio.gather(*(found.look_up(topic, seconds) for topic in unknown))
    return found


def fault_of(error: BaseException) -> Fault:
    """Classify the error of a send."""
    if fault := _FAULTS.get(type(error)):
        return fault
    if getattr(error, "retriable", False):
        return Fault.BROKER
    # Refusals that are not in the table, such as those of newer brokers, may be temporary.
    return Fault.TOPIC if isinstance(error, kafka_errors.BrokerResponseError) else Fault.UNKNOWN


class SendMonitor:
    """Metrics of sends, and the topics that refuse messages at present."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._until: dict[str, float] = {}

    def record(self, topic: str, error: SendError | None, seconds: float) -> None:
        """Count a send that took `seconds`."""
        if error is None:
            metrics.deliveries.add(topic, seconds)
            self._accepted(topic)
            return
        metrics.send_failures.labels(topic, type(error).__name__).inc()
        if isinstance(error, TopicUnavailable):
            self._refused(error)

    def record_all(
        self, messages: Sequence[Message], errors: Sequence[SendError | None], seconds: float
    ) -> None:
        delivered: dict[str, int] = {}
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                delivered[message.topic] = delivered.get(message.topic, 0) + 1
        for topic, count in delivered.items():
            metrics.deliveries.add(topic, seconds, count)
            self._accepted(topic)
        if sum(delivered.values()) < len(messages):
            for message, error in zip(messages, errors, strict=True):
                if error is not None:
                    self.record(message.topic, error, seconds)

    def _refused(self, error: TopicUnavailable) -> None:
        if error.topic not in self._reasons:
            log.warning("topic refused messages", topic=error.topic, reason=str(error))
        metrics.topic_refusals.labels(error.topic, error.kind).inc()
        self._reasons[error.topic] = str(error)
        self._until[error.topic] = time.monotonic() + _REMEMBERED_SECONDS

    def _accepted(self, topic: str) -> None:
        if self._reasons and self._reasons.pop(topic, ""):
            log.info("topic accepts messages again", topic=topic)

    async def check(self) -> None:
        """Raise Unhealthy while a topic refuses messages."""
        now = time.monotonic()
        for topic in [topic for topic in self._reasons if self._until[topic] < now]:
            del self._reasons[topic]
        if self._reasons:
            raise Unhealthy("; ".join(self._reasons.values()))
