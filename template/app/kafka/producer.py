"""The producer: every message ends, within its deadline, in delivery or in a typed error."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

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
_RECONNECT_SECONDS = (0.2, 5.0)
_METADATA_SECONDS = 5.0
_CLOSE_SECONDS = 5.0

Outcome = SendError | None


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
        }
        self._forwarded_limit = forwarded_limit(settings)
        self._deadline = settings.kafka_send_timeout_seconds
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
        client = await self._ready(_METADATA_SECONDS / 2)
        if not await client.client.force_metadata_update():
            raise BrokerUnavailable(
                f"no broker answers at {self._settings.kafka_bootstrap_servers}"
            )

    async def send(self, message: Message) -> None:
        (outcome,) = await self.send_all([message])
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        started = time.perf_counter()
        outcomes = await self._attempt(messages)
        rejected = [
            index for index, outcome in enumerate(outcomes) if isinstance(outcome, MessageRejected)
        ]
        if len(messages) > 1 and rejected:
            # A broker refuses a whole batch for one message in it: find out which one it was.
            refused = RefusedKeys()
            for index in rejected:
                message = messages[index]
                outcomes[index] = refused.before(message) or (await self._attempt([message]))[0]
                refused.note(message, outcomes[index])
        _count(messages, outcomes, time.perf_counter() - started)
        return outcomes

    async def _attempt(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = [self._too_large(message) for message in messages]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline
        try:
            client = await self._ready(self._deadline)
        except BrokerUnavailable as error:
            return [outcome or error for outcome in outcomes]
        unknown = await self._unknown_topics(client, {message.topic for message in messages})
        outcomes = [o or unknown.get(m.topic) for m, o in zip(messages, outcomes, strict=True)]
        futures = await self._hand_over(client, messages, outcomes, deadline)
        await _done(futures.values(), deadline)
        for index, future in futures.items():
            outcomes[index] = self._outcome(client, future)
        return outcomes

    async def _hand_over(
        self,
        client: AIOKafkaProducer,
        messages: Sequence[Message],
        outcomes: list[Outcome],
        deadline: float,
    ) -> dict[int, asyncio.Future[Any]]:
        """Give the client what has no outcome yet, in order; their acknowledgements, by index."""
        futures: dict[int, asyncio.Future[Any]] = {}
        refused = RefusedKeys()
        try:
            async with asyncio.timeout_at(deadline):
                for index, message in enumerate(messages):
                    outcome = outcomes[index] = refused.before(message) or outcomes[index]
                    if outcome is None:
                        try:
                            futures[index] = await client.send(
                                message.topic,
                                message.value,
                                message.key,
                                headers=list(message.headers),
                            )
                        except kafka_errors.KafkaError as error:
                            outcome = outcomes[index] = self._failure(client, error)
                    refused.note(message, outcome)
        except TimeoutError:
            for index, outcome in enumerate(outcomes):
                if outcome is None and index not in futures:
                    outcomes[index] = self._timed_out()
        return futures

    def _outcome(self, client: AIOKafkaProducer, future: asyncio.Future[Any]) -> Outcome:
        if not future.done():
            future.add_done_callback(_retrieve)
            return self._timed_out()
        error = future.exception()
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

    def _timed_out(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"no broker acknowledged the message within {self._deadline:g} s")

    def _too_large(self, message: Message) -> Outcome:
        limit = self._settings.kafka_max_message_bytes
        if message.size <= (self._forwarded_limit if message.forwarded else limit):
            return None
        return MessageTooLarge(
            f"the message for {message.topic} has {message.size} bytes,"
            f" more than KAFKA_MAX_MESSAGE_BYTES={limit}"
        )

    async def _unknown_topics(
        self, client: AIOKafkaProducer, topics: set[str]
    ) -> dict[str, SendError]:
        known = client.client.cluster
        missing = [topic for topic in topics if known.partitions_for_topic(topic) is None]
        checks = await asyncio.gather(*(self._look_up(client, topic) for topic in missing))
        return {topic: e for topic, e in zip(missing, checks, strict=True) if e is not None}

    async def _look_up(self, client: AIOKafkaProducer, topic: str) -> SendError | None:
        try:
            async with asyncio.timeout(min(_METADATA_SECONDS, self._deadline)):
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

    async def _ready(self, seconds: float) -> AIOKafkaProducer:
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            raise BrokerUnavailable(f"not connected to Kafka: {self._reason}") from None
        if self._client is None:
            raise BrokerUnavailable("the producer is closed")
        return self._client

    def _replace(self, client: AIOKafkaProducer, reason: str) -> None:
        if client is not self._client:
            return
        log.warning("producer replaced", reason=reason)
        metrics.producer_replacements.inc()
        self._connected.clear()
        self._client = None
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


async def _close(client: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.stop()
    except (
        Exception
    ) as error:  # it is given up anyway; what it still held was reported to its sender
        log.warning("producer did not close cleanly", error=f"{type(error).__name__}: {error}")
        await client.client.close()


async def _done(futures: Iterable[asyncio.Future[Any]], deadline: float) -> None:
    """Wait until all are done, or the deadline has passed."""
    # One after the other: those of a batch are done at the same moment, and to listen to each of
    # thousands costs more than to look at it.
    loop = asyncio.get_running_loop()
    for future in futures:
        if not future.done():
            await asyncio.wait({future}, timeout=max(0.0, deadline - loop.time()))
            if not future.done():
                return


def _retrieve(future: asyncio.Future[Any]) -> None:
    # A late failure was already reported as a missed deadline: asyncio need not warn of it.
    if not future.cancelled():
        future.exception()


def _count(messages: Sequence[Message], outcomes: Sequence[Outcome], seconds: float) -> None:
    delivered: Counter[str] = Counter()
    for message, outcome in zip(messages, outcomes, strict=True):
        if outcome is None:
            delivered[message.topic] += 1
        else:
            metrics.send_failures.labels(message.topic, type(outcome).__name__).inc()
    for topic, count in delivered.items():
        metrics.messages_sent.labels(topic).inc(count)
        latency = metrics.message_latency.labels(topic)
        for _ in range(count):
            latency.observe(seconds)


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
