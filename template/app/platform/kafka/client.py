"""The Kafka client of a producer, in which a topic's refusal does not affect other topics.

Plain aiokafka retries a batch that lacks replicas for ever, and delays all batches of that broker.
After any other refusal, its sequence numbers no longer match the broker's.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Any
from weakref import WeakSet

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.sender import Sender, SendProduceReqHandler

from app.platform.kafka.codec import Message

# The client uses it, too, so that a key has one partition, however its messages are sent.
choose_partition = DefaultPartitioner()


class InvalidRecordError(kafka_errors.BrokerResponseError):  # type: ignore[misc]
    """The broker refuses the record's format, such as one without a key on a compacted topic."""

    errno = 87  # missing in aiokafka


class NotSentError(kafka_errors.KafkaError):  # type: ignore[misc]
    """The partition refused an earlier batch, so this one was not sent, to keep the order."""


class Client(AIOKafkaProducer):  # type: ignore[misc]
    """An idempotent client that stays usable after a refusal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, partitioner=choose_partition)
        inherited: Any = self._sender
        self._sender: Any = _Sender(
            self.client,
            acks=inherited._acks,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=inherited._retry_backoff * 1000,
            request_timeout_ms=inherited._request_timeout_ms,
        )

    @property
    def refusals(self) -> Mapping[str, int]:
        """The number of refused batches, by topic."""
        refusals: Counter[str] = self._sender.refusals
        return refusals

    @property
    def out_of_sequence(self) -> bool:
        """Whether a partition's sequence numbers may no longer match the broker's."""
        return bool(self._sender.out_of_sequence)


class _Sender(Sender):  # type: ignore[misc]
    """A sender that rolls its sequence numbers back after a refusal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refusals: Counter[str] = Counter()
        self.out_of_sequence = False
        self.uncertain: WeakSet[Any] = WeakSet()  # batches that the broker may have written

    async def _send_produce_req(self, node_id: int, batches: Mapping[Any, Any]) -> None:
        await _Request(self, batches).do(node_id)
        self._in_flight.remove(node_id)
        for partition in batches:
            self._muted_partitions.remove(partition)

    def forget(self, batch: Any) -> None:
        """Roll back `batch`, and fail the batches after it, which must not overtake it."""
        self.refusals[batch.tp.topic] += 1
        for later in self._message_accumulator._batches.pop(batch.tp, ()):
            later.failure(NotSentError("an earlier batch of the partition was refused"))
        if batch in self.uncertain:
            # If the broker wrote it, the next batch of this number would count as a duplicate.
            self.out_of_sequence = True
        else:
            self._txn_manager.increment_sequence_number(batch.tp, -batch.record_count)


class _Request(SendProduceReqHandler):  # type: ignore[misc]
    """A request that distinguishes refused batches from those that may have been written."""

    def __init__(self, sender: _Sender, batches: Mapping[Any, Any]) -> None:
        super().__init__(sender, batches)
        self._answered = False
        self._refused: list[Any] = []

    def handle_response(self, response: Any) -> None:
        self._answered = True
        self._fail_invalid_records(response)
        super().handle_response(response)
        for batch in self._refused:
            self._sender.forget(batch)

    def _fail_invalid_records(self, response: Any) -> None:
        for topic, partitions in response.topics:
            for partition, code, *_ in partitions:
                if code == InvalidRecordError.errno:
                    self._batches[topic, partition].failure(InvalidRecordError())

    def _can_retry(self, error: kafka_errors.KafkaError, batch: Any) -> bool:
        lacks_replicas = isinstance(error, kafka_errors.NotEnoughReplicasError)
        if self._answered and (lacks_replicas or not error.retriable):
            self._refused.append(batch)
            return False
        self._sender.uncertain.add(batch)
        return bool(super()._can_retry(error, batch))


def knows(client: Client, topic: str) -> bool:
    return client.client.cluster.partitions_for_topic(topic) is not None


def hand_over(client: Client, message: Message) -> Awaitable[asyncio.Future[Any]]:
    """Enqueue `message`, waiting for room, and return its future acknowledgement. Raises KafkaError."""
    sending: Awaitable[asyncio.Future[Any]] = client.send(
        message.topic, message.value, message.key, headers=list(message.headers)
    )
    return sending


def is_led(client: Client, topic: str) -> bool:
    """Return whether each partition of `topic` has a leader."""
    cluster = client.client.cluster
    partitions = cluster.partitions_for_topic(topic)
    return partitions is not None and len(partitions) == len(
        cluster.available_partitions_for_topic(topic)
    )


def partitions_of(client: Client, topic: str) -> tuple[list[int], list[int]]:
    """Return the partitions of `topic`, and those of them that have a leader."""
    cluster = client.client.cluster
    return (
        sorted(cluster.partitions_for_topic(topic)),
        sorted(cluster.available_partitions_for_topic(topic)),
    )


class Batches:
    """Explicit batches of messages. Those of a batch share one acknowledgement."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._partitions: dict[str, tuple[list[int], list[int]]] = {}
        self._open: dict[tuple[str, int], _Batch] = {}

    async def add(self, message: Message) -> asyncio.Future[Any]:
        """Append `message`, and return its future acknowledgement."""
        partition = message.topic, self._partition_of(message)
        batch = self._open.get(partition)
        if batch is None or not batch.append(message):
            if batch is not None:
                await batch.hand_over(self._client, *partition)
            batch = self._open[partition] = _Batch(self._client)
            batch.append(message)
        return batch.acknowledged

    async def hand_over(self) -> None:
        """Enqueue the batches that the client does not have yet."""
        for partition, batch in self._open.items():
            await batch.hand_over(self._client, *partition)

    def _partition_of(self, message: Message) -> int:
        if message.topic not in self._partitions:
            self._partitions[message.topic] = partitions_of(self._client, message.topic)
        partition: int = choose_partition(message.key, *self._partitions[message.topic])
        return partition


class _Batch:
    """A batch of messages for one partition."""

    def __init__(self, client: Client) -> None:
        self._builder = client.create_batch()
        self.acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def append(self, message: Message) -> bool:
        """Append `message` if there is room, as in an empty batch; return whether there was."""
        added = self._builder.append(
            timestamp=None, key=message.key, value=message.value, headers=list(message.headers)
        )
        return added is not None

    async def hand_over(self, client: Client, topic: str, partition: int) -> None:
        """Enqueue the batch, once the client has sent the partition's previous one."""
        try:
            sent = await client.send_batch(self._builder, topic, partition=partition)
        except Exception as error:  # including AssertionError, if the partition no longer exists
            self.acknowledged.set_exception(error)
        else:
            sent.add_done_callback(self._copy_result)

    def _copy_result(self, sent: asyncio.Future[Any]) -> None:
        error = sent.exception()
        if self.acknowledged.done():
            return  # cancelled by its sender
        if error is None:
            self.acknowledged.set_result(None)
        else:
            self.acknowledged.set_exception(error)
