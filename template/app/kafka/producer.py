"""The producer: every message ends, within its deadline, in delivery or in a typed error."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.partitioner import DefaultPartitioner

from app.kafka import metrics
from app.kafka.codec import Message
from app.kafka.errors import (
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    SendError,
    UnknownTopic,
)
from app.kafka.settings import KafkaSettings, client_options, reason_for
from app.kafka.topics import FORWARDED_HEADROOM_BYTES, forwarded_limit

log = structlog.get_logger(__name__)

# After one of these the client's sequence numbers no longer fit the broker's: each later message of
# the partition would be refused, so the client is replaced.
_OUT_OF_SEQUENCE = (
    kafka_errors.ProducerFenced,
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.UnknownProducerId,
    kafka_errors.ProducerClosed,
)
# What one partition may get in one request. The client waits for a partition's acknowledgement before
# it sends the next batch there, so its own 16 kB would mean dozens of requests for what a relay or a
# busy handler hands over at once.
_BATCH_BYTES = 262_144
# From so many messages on they get batches of their own, where each costs half as much. Fewer share
# batches with what others send: a partition takes one batch after the other, and each is a wait.
_OWN_BATCHES_FROM = 100
_RECONNECT_SECONDS = (0.2, 5.0)
_METADATA_SECONDS = 5.0
_CLOSE_SECONDS = 5.0

# For the client, too: a key has one partition, however its messages are handed over.
_choose_partition = DefaultPartitioner()

T = TypeVar("T")
Outcome = SendError | None
# A message is refused, or handed over to the client, which promises an acknowledgement.
Handed = SendError | asyncio.Future[Any]


class Producer(Protocol):
    """What the service needs of a producer. `KafkaProducer` and `FakeProducer` are two."""

    async def send(self, message: Message) -> None:
        """Deliver `message`. Raises SendError when it was not acknowledged within the deadline."""

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        """Deliver all, in order by key; the result holds None or the error of each message.

        After one that was refused nothing of its topic and key is delivered: what follows it ends
        as BrokerUnavailable, and passes when it is sent again.
        """

    async def ping(self) -> None:
        """Raises SendError while no broker answers."""


class KafkaProducer:
    """A producer that starts without a broker, survives its absence and replaces a broken client.

    acks=all, idempotent. A message whose deadline passed (BrokerUnavailable) may still arrive.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._options = {
            **client_options(settings),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": settings.kafka_linger_ms,
            "compression_type": _compression(settings),
            "max_batch_size": min(_BATCH_BYTES, settings.kafka_max_message_bytes),
            "max_request_size": forwarded_limit(settings),
            "partitioner": _choose_partition,
        }
        self._forwarded_limit = forwarded_limit(settings)
        self._seconds = settings.kafka_send_timeout_seconds
        self._deadline = Deadline(self._seconds)
        self._client: AIOKafkaProducer | None = None
        self._connected = asyncio.Event()
        self._reason = "not started"
        self._connecting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KafkaProducer"]:
        """Connect in the background for the length of the block; flush and close at its end."""
        self._connecting = asyncio.create_task(self._connect(), name="kafka-producer-connect")
        try:
            yield self
        finally:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            if self._client is not None:
                await _close(self._client)
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def ping(self) -> None:
        try:
            async with asyncio.timeout(_METADATA_SECONDS / 2):
                client = await self._ready()
        except TimeoutError:
            raise self._late() from None
        if not await client.client.force_metadata_update():
            raise BrokerUnavailable(
                f"no broker answers at {self._settings.kafka_bootstrap_servers}"
            )

    async def send(self, message: Message) -> None:
        started = time.perf_counter()
        outcome = await self._send(message)
        _count(message.topic, outcome, time.perf_counter() - started)
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        started = time.perf_counter()
        if len(messages) == 1:
            outcomes = [await self._send(messages[0])]
        else:
            outcomes = await self._send_all(messages)
            await self._repeat_rejected(messages, outcomes)
        _count_all(messages, outcomes, time.perf_counter() - started)
        return outcomes

    async def _repeat_rejected(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        # A broker refuses a whole batch for one message in it: find out which one it was.
        refused = RefusedKeys()
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, MessageRejected):
                message = messages[index]
                outcomes[index] = refused.before(message) or await self._send(message)
                refused.note(message, outcomes[index])

    async def _send(self, message: Message) -> Outcome:
        try:
            return await self._deadline.wait_for(self._deliver(message))
        except TimeoutError:
            return self._late()

    async def _deliver(self, message: Message) -> Outcome:
        if refusal := self._too_large(message):
            return refusal
        client = self._client or await self._ready()
        if not _knows(client, message.topic):
            refusal = await self._look_up(client, message.topic)
            if refusal is not None:
                return refusal
        try:
            acknowledged = await _hand_over(client, message)
            await acknowledged
        except kafka_errors.KafkaError as error:
            return self._failure(client, error)
        return None

    async def _send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            await self._deadline.wait_for(self._deliver_all(messages, outcomes))
        except TimeoutError:
            outcomes += [self._too_large(m) or self._late() for m in messages[len(outcomes) :]]
        return outcomes

    async def _deliver_all(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        """Fill in `outcomes`; when it is cancelled, those of what was handed over by then."""
        client = self._client or await self._ready()
        handed: list[Handed] = []
        try:
            await self._hand_over_all(client, messages, handed)
            await _all_done(dict.fromkeys(handed))
        finally:
            found = {one: self._outcome(client, one) for one in dict.fromkeys(handed)}
            outcomes += [found[one] for one in handed]

    async def _hand_over_all(
        self, client: AIOKafkaProducer, messages: Sequence[Message], handed: list[Handed]
    ) -> None:
        """Give the client what nothing speaks against, in order."""
        unknown = await self._unknown_topics(client, {message.topic for message in messages})
        refused = RefusedKeys()
        batches = _Batches(client)
        few = len(messages) < _OWN_BATCHES_FROM
        for message in messages:
            one: Handed | None = (
                refused.before(message) or self._too_large(message) or unknown.get(message.topic)
            )
            if one is None:
                try:
                    one = await (_hand_over(client, message) if few else batches.add(message))
                except kafka_errors.KafkaError as error:
                    one = self._failure(client, error)
            if isinstance(one, SendError):
                refused.note(message, one)
            handed.append(one)
        await batches.hand_over()

    def _outcome(self, client: AIOKafkaProducer, handed: Handed) -> Outcome:
        if isinstance(handed, SendError):
            return handed
        handed.cancel()  # unless it is done: what becomes of it later, nobody asks any more
        if handed.cancelled():
            return self._late()
        error = handed.exception()
        return None if error is None else self._failure(client, error)

    def _failure(self, client: AIOKafkaProducer, error: BaseException) -> SendError:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, _OUT_OF_SEQUENCE) or client is not self._client:
            self._replace(client, reason)
            return BrokerUnavailable(f"the producer was replaced ({reason})")
        if getattr(error, "retriable", False) or isinstance(error, kafka_errors.KafkaTimeoutError):
            return BrokerUnavailable(reason)
        self._replace(client, reason)
        if isinstance(error, kafka_errors.BrokerResponseError):
            return MessageRejected(f"the broker refused the message: {reason}")
        return BrokerUnavailable(reason)

    def _late(self) -> BrokerUnavailable:
        if self._client is None:
            return BrokerUnavailable(f"not connected to Kafka: {self._reason}")
        return BrokerUnavailable(f"no broker acknowledged the message within {self._seconds:g} s")

    def _too_large(self, message: Message) -> Outcome:
        limit = self._settings.kafka_max_message_bytes
        if message.size <= (self._forwarded_limit if message.forwarded else limit):
            return None
        return MessageTooLarge(
            f"the message for {message.topic} has {message.size} bytes,"
            f" more than KAFKA_MAX_MESSAGE_BYTES={limit}"
        )

    async def _unknown_topics(
        self, client: AIOKafkaProducer, topics: Iterable[str]
    ) -> dict[str, SendError]:
        missing = [topic for topic in topics if not _knows(client, topic)]
        checks = await asyncio.gather(*(self._look_up(client, topic) for topic in missing))
        return {topic: e for topic, e in zip(missing, checks, strict=True) if e is not None}

    async def _look_up(self, client: AIOKafkaProducer, topic: str) -> SendError | None:
        try:
            async with asyncio.timeout(min(_METADATA_SECONDS, self._seconds / 2)):
                await client.partitions_for(topic)
        except (TimeoutError, kafka_errors.UnknownTopicOrPartitionError):
            if await client.client.force_metadata_update():
                return UnknownTopic(
                    f"the topic {topic} does not exist: `app topics create` makes it"
                )
            return BrokerUnavailable("no broker answers")
        except kafka_errors.KafkaError as error:
            if error.retriable:
                return BrokerUnavailable(f"{type(error).__name__}: {error}")
            return MessageRejected(f"{topic}: {type(error).__name__}: {error}")
        return None

    async def _ready(self) -> AIOKafkaProducer:
        """The client, once it is connected."""
        while self._client is None:
            await self._connected.wait()
        return self._client

    def _replace(self, client: AIOKafkaProducer, reason: str) -> None:
        if client is not self._client:
            return
        log.warning("producer replaced", reason=reason)
        metrics.producer_replacements.inc()
        self._connected.clear()
        self._client = None
        self._reason = reason
        self._in_background(_close(client), "kafka-producer-close")
        self._connecting = asyncio.create_task(self._connect(), name="kafka-producer-connect")

    def _in_background(self, work: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _connect(self) -> None:
        wait, longest = _RECONNECT_SECONDS
        while True:
            client = AIOKafkaProducer(**self._options)
            try:
                await client.start()
            except asyncio.CancelledError:
                await _close(client)
                raise
            except Exception as error:  # whatever the reason, the service stays up and says it
                await _close(client)
                self._report(await reason_for(error, self._settings))
                await asyncio.sleep(wait)
                wait = min(wait * 2, longest)
            else:
                self._client = client
                self._connected.set()
                log.info("producer connected", servers=self._settings.kafka_bootstrap_servers)
                return

    def _report(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("producer cannot connect, trying on", reason=reason)
        self._reason = reason


class RefusedKeys:
    """Keeps the order by key where one of its messages is refused: what follows has to wait."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, bytes]] = set()

    def before(self, message: Message) -> Outcome:
        """The error of `message` if an earlier one of its key was refused."""
        if self._keys and message.key is not None and (message.topic, message.key) in self._keys:
            return BrokerUnavailable("not sent: an earlier message of its key was refused")
        return None

    def note(self, message: Message, outcome: Outcome) -> None:
        if outcome is not None and not outcome.retriable and message.key is not None:
            self._keys.add((message.topic, message.key))


def _compression(settings: KafkaSettings) -> str | None:
    return None if settings.kafka_compression == "none" else settings.kafka_compression


def _knows(client: AIOKafkaProducer, topic: str) -> bool:
    return client.client.cluster.partitions_for_topic(topic) is not None


def _hand_over(client: AIOKafkaProducer, message: Message) -> Awaitable[asyncio.Future[Any]]:
    """Wait until the partition's batch has room; the acknowledgement to come. Raises KafkaError."""
    sending: Awaitable[asyncio.Future[Any]] = client.send(
        message.topic, message.value, message.key, headers=list(message.headers)
    )
    return sending


class _Batches:
    """Messages in batches of their own: those of a batch have one acknowledgement in common."""

    def __init__(self, client: AIOKafkaProducer) -> None:
        self._client = client
        self._partitions: dict[str, tuple[list[int], list[int]]] = {}
        self._open: dict[tuple[str, int], _Batch] = {}

    async def add(self, message: Message) -> asyncio.Future[Any]:
        """The acknowledgement to come, once the batches are handed over."""
        place = message.topic, self._partition_of(message)
        batch = self._open.get(place)
        if batch is None or not batch.takes(message):
            if batch is not None:
                await batch.hand_over(self._client, *place)
            batch = self._open[place] = _Batch(self._client)
            batch.takes(message)
        return batch.acknowledged

    async def hand_over(self) -> None:
        """Give the client what it does not have yet."""
        for place, batch in self._open.items():
            await batch.hand_over(self._client, *place)

    def _partition_of(self, message: Message) -> int:
        if message.topic not in self._partitions:
            cluster = self._client.client.cluster
            self._partitions[message.topic] = (
                sorted(cluster.partitions_for_topic(message.topic)),
                sorted(cluster.available_partitions_for_topic(message.topic)),
            )
        partition: int = _choose_partition(message.key, *self._partitions[message.topic])
        return partition


class _Batch:
    """A batch of one partition."""

    def __init__(self, client: AIOKafkaProducer) -> None:
        self._builder = client.create_batch()
        self.acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def takes(self, message: Message) -> bool:
        """Whether it had room for `message`; an empty one has."""
        added = self._builder.append(
            timestamp=None, key=message.key, value=message.value, headers=list(message.headers)
        )
        return added is not None

    async def hand_over(self, client: AIOKafkaProducer, topic: str, partition: int) -> None:
        """Wait until the partition's last batch is on its way."""
        try:
            sent = await client.send_batch(self._builder, topic, partition=partition)
        except Exception as error:  # an AssertionError too, where the partition is gone meanwhile
            self.acknowledged.set_exception(error)
        else:
            sent.add_done_callback(self._pass_on)

    def _pass_on(self, sent: asyncio.Future[Any]) -> None:
        error = sent.exception()
        if self.acknowledged.done():
            return  # given up
        if error is None:
            self.acknowledged.set_result(None)
        else:
            self.acknowledged.set_exception(error)


async def _close(client: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.stop()
    except Exception as error:  # it is given up anyway, and who sent what it holds was told
        log.warning("producer did not close cleanly", error=f"{type(error).__name__}: {error}")
        await client.client.close()


class Deadline:
    """`asyncio.wait_for` with one timer for all that wait: each waits equally long, so that who
    began first is late first. A timer for each costs a tenth of a send."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Raises TimeoutError when `work` is late, and was cancelled."""
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(self._seconds, self._cancel_late)
        # To find the loop anew each time costs more than all the rest here.
        task = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        self._ends[task] = self._loop.time() + self._seconds
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._ends or task.uncancel() > cancelling:
                raise  # somebody else cancelled the task
            raise TimeoutError from None
        finally:
            self._ends.pop(task, None)

    def _cancel_late(self) -> None:
        self._timer = None
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > self._loop.time():
                self._timer = self._loop.call_at(end, self._cancel_late)
                return
            del self._ends[task]
            task.cancel()


async def _all_done(handed: Iterable[Handed]) -> None:
    # One after the other: those of a batch are done at the same moment, and to listen to each of
    # thousands costs more than to look at it.
    for one in handed:
        if isinstance(one, asyncio.Future) and not one.done():
            try:
                await one
            except Exception:  # the future keeps it
                continue


def _count(topic: str, outcome: Outcome, seconds: float) -> None:
    if outcome is None:
        metrics.deliveries.add(topic, seconds)
    else:
        metrics.send_failures.labels(topic, type(outcome).__name__).inc()


def _count_all(messages: Sequence[Message], outcomes: Sequence[Outcome], seconds: float) -> None:
    delivered: dict[str, int] = {}
    for message, outcome in zip(messages, outcomes, strict=True):
        if outcome is None:
            delivered[message.topic] = delivered.get(message.topic, 0) + 1
        else:
            _count(message.topic, outcome, seconds)
    for topic, count in delivered.items():
        metrics.deliveries.add(topic, seconds, count)


class FakeProducer:
    """Delivers into `sent`, in order. `available` and `topics` make it fail as a broker would."""

    def __init__(self, topics: Sequence[str] | None = None, max_bytes: int = 1_000_000) -> None:
        self.sent: list[Message] = []
        self.available = True
        self._topics = topics
        self._max_bytes = max_bytes

    async def ping(self) -> None:
        if not self.available:
            raise BrokerUnavailable("the fake broker is away")

    async def send(self, message: Message) -> None:
        (outcome,) = await self.send_all([message])
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        refused = RefusedKeys()
        outcomes: list[Outcome] = []
        for message in messages:
            outcomes.append(refused.before(message) or self._refusal(message))
            refused.note(message, outcomes[-1])
        self.sent += [m for m, refusal in zip(messages, outcomes, strict=True) if refusal is None]
        return outcomes

    def on(self, topic: str) -> list[Message]:
        """What was delivered to `topic`."""
        return [message for message in self.sent if message.topic == topic]

    def _refusal(self, message: Message) -> SendError | None:
        if not self.available:
            return BrokerUnavailable("the fake broker is away")
        limit = self._max_bytes + (FORWARDED_HEADROOM_BYTES if message.forwarded else 0)
        if message.size > limit:
            return MessageTooLarge(f"{message.size} bytes are more than {limit}")
        if self._topics is not None and message.topic not in self._topics:
            return UnknownTopic(f"the topic {message.topic} does not exist")
        return None
