"""The producer: every message ends, within its deadline, in delivery or in a typed error."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from aiokafka import errors as kafka_errors

from app.platform.kafka import metrics
from app.platform.kafka.client import Batches, Client, hand_over
from app.platform.kafka.codec import Message
from app.platform.kafka.deadline import Deadline
from app.platform.kafka.errors import (
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    SendError,
    TopicUnavailable,
)
from app.platform.kafka.refusals import Meaning, Obstacles, RefusingTopics, meaning_of, obstacles
from app.platform.kafka.settings import KafkaSettings, client_options, reason_for
from app.platform.kafka.topics import forwarded_limit

log = structlog.get_logger(__name__)

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

Outcome = SendError | None
# A message is refused, or handed over to the client, which promises an acknowledgement.
Handed = SendError | asyncio.Future[Any]


class Producer(Protocol):
    """A producer, as the service needs it: `KafkaProducer`, or `FakeProducer` in tests."""

    async def send(self, message: Message) -> None:
        """Deliver `message`. Raises SendError when it was not acknowledged within the deadline."""

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        """Deliver all, in order by key; the result holds None or the error of each message.

        After one that was refused nothing of its topic and key is delivered: what follows it ends
        as NotSent, and passes when it is sent again. What a topic refuses for now ends at once, as
        TopicUnavailable: the caller waits, and other topics do not.
        """

    async def ping(self) -> None:
        """Raises SendError while no broker answers."""

    async def check_topics(self) -> None:
        """Raises Unhealthy, with topic and reason, while a topic refuses what is sent to it."""


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
        self._seconds = settings.kafka_send_timeout_seconds
        self._deadline = Deadline(self._seconds)
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._reason = "not started"
        self._refusing = RefusingTopics()
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

    async def check_topics(self) -> None:
        await self._refusing.check()

    async def send(self, message: Message) -> None:
        started = time.perf_counter()
        outcome = await self._send(message)
        self._count(message.topic, outcome, time.perf_counter() - started)
        if outcome is not None:
            raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        started = time.perf_counter()
        if len(messages) == 1:
            outcomes = [await self._send(messages[0])]
        else:
            outcomes = await self._send_all(messages)
            await self._repeat_rejected(messages, outcomes)
        self._count_all(messages, outcomes, time.perf_counter() - started)
        return outcomes

    async def _repeat_rejected(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        # A broker refuses a whole batch for one message in it: find out which one it was.
        refused = RefusedKeys()
        waiting = {o.topic: o for o in outcomes if isinstance(o, TopicUnavailable)}
        away: Outcome = None
        for index, outcome in enumerate(outcomes):
            if outcome is None:
                continue
            message = messages[index]
            if isinstance(outcome, MessageRejected | NotSent):
                outcome = waiting.get(message.topic) or refused.before(message) or away
                outcome = outcome or await self._send(message, own_batch=True)
                outcomes[index] = outcome
                if isinstance(outcome, TopicUnavailable):
                    waiting[message.topic] = outcome
                elif type(outcome) is BrokerUnavailable:
                    away = outcome
            refused.note(message, outcome)

    async def _send(self, message: Message, own_batch: bool = False) -> Outcome:
        try:
            return await self._deadline.wait_for(self._deliver(message, own_batch))
        except TimeoutError:
            return self._late()

    async def _deliver(self, message: Message, own_batch: bool) -> Outcome:
        if refusal := self._too_large(message):
            return refusal
        while True:
            client = self._client or await self._ready()
            found = await self._obstacles(client, [message.topic])
            outcome = found.before(message) or await self._deliver_to(client, message, own_batch)
            # Others in its batch, or in one before it, may be why it was not taken.
            if not (
                isinstance(outcome, NotSent)
                or (isinstance(outcome, MessageRejected) and not own_batch)
            ):
                return outcome
            own_batch = True

    async def _deliver_to(self, client: Client, message: Message, own_batch: bool) -> Outcome:
        try:
            if own_batch:
                batches = Batches(client)
                acknowledged = await batches.add(message)
                await batches.hand_over()
            else:
                acknowledged = await hand_over(client, message)
            await acknowledged
        except kafka_errors.KafkaError as error:
            return self._failure(client, message.topic, error)
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
            topics = {one: m.topic for one, m in zip(handed, messages, strict=False)}
            found = {one: self._outcome(client, topic, one) for one, topic in topics.items()}
            outcomes += [found[one] for one in handed]

    async def _hand_over_all(
        self, client: Client, messages: Sequence[Message], handed: list[Handed]
    ) -> None:
        """Give the client what nothing speaks against, in order."""
        obstacles = await self._obstacles(client, {message.topic for message in messages})
        refused = RefusedKeys()
        batches = Batches(client)
        few = len(messages) < _OWN_BATCHES_FROM
        refusals, before = client.refusals, dict(client.refusals)
        for message in messages:
            topic = message.topic
            one: Handed | None = (
                refused.before(message) or self._too_large(message) or obstacles.before(message)
            )
            if refusals.get(topic) != before.get(topic):  # what was handed over may not pass
                one = one or NotSent("not sent: the topic refused an earlier message")
            if one is None:
                try:
                    one = await (hand_over(client, message) if few else batches.add(message))
                except kafka_errors.KafkaError as error:
                    one = self._failure(client, topic, error)
            if isinstance(one, SendError):
                refused.note(message, one)
            handed.append(one)
        await batches.hand_over()

    def _outcome(self, client: Client, topic: str, handed: Handed) -> Outcome:
        if isinstance(handed, SendError):
            return handed
        handed.cancel()  # unless it is done: what becomes of it later, nobody asks any more
        if handed.cancelled():
            return self._late()
        error = handed.exception()
        return None if error is None else self._failure(client, topic, error)

    def _failure(self, client: Client, topic: str, error: BaseException) -> SendError:
        reason = f"{type(error).__name__}: {error}"
        meaning = meaning_of(error)
        replaced = meaning is Meaning.PRODUCER or client is not self._client
        if replaced or client.out_of_sequence:
            self._replace(client, reason)
            return BrokerUnavailable(f"the producer was replaced ({reason})")
        match meaning:
            case Meaning.RECORD:
                return MessageRejected(f"the broker refused the message: {reason}")
            case Meaning.TOPIC:
                return TopicUnavailable(topic, f"{topic}: {reason}", type(error).__name__)
            case Meaning.BEHIND:
                return NotSent(str(error))
            case Meaning.UNFORESEEN:
                self._replace(client, reason)
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

    async def _obstacles(self, client: Client, topics: Iterable[str]) -> Obstacles:
        return await obstacles(client, topics, min(_METADATA_SECONDS, self._seconds / 2))

    def _count(self, topic: str, outcome: Outcome, seconds: float) -> None:
        if outcome is None:
            metrics.deliveries.add(topic, seconds)
            self._refusing.took(topic)
            return
        metrics.send_failures.labels(topic, type(outcome).__name__).inc()
        if isinstance(outcome, TopicUnavailable):
            self._refusing.refused(outcome)

    def _count_all(
        self, messages: Sequence[Message], outcomes: Sequence[Outcome], seconds: float
    ) -> None:
        delivered: dict[str, int] = {}
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                delivered[message.topic] = delivered.get(message.topic, 0) + 1
        for topic, count in delivered.items():
            metrics.deliveries.add(topic, seconds, count)
            self._refusing.took(topic)
        if sum(delivered.values()) < len(messages):
            for message, outcome in zip(messages, outcomes, strict=True):
                if outcome is not None:
                    self._count(message.topic, outcome, seconds)

    async def _ready(self) -> Client:
        """The client, once it is connected."""
        while self._client is None:
            await self._connected.wait()
        return self._client

    def _replace(self, client: Client, reason: str) -> None:
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
            client = Client(**self._options)
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
            return NotSent("not sent: an earlier message of its key was refused")
        return None

    def note(self, message: Message, outcome: Outcome) -> None:
        if outcome is not None and message.key is not None:
            self._keys.add((message.topic, message.key))


def _compression(settings: KafkaSettings) -> str | None:
    return None if settings.kafka_compression == "none" else settings.kafka_compression


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.stop()
    except Exception as error:  # it is given up anyway, and who sent what it holds was told
        log.warning("producer did not close cleanly", error=f"{type(error).__name__}: {error}")
        await client.client.close()


async def _all_done(handed: Iterable[Handed]) -> None:
    # One after the other: those of a batch are done at the same moment, and to listen to each of
    # thousands costs more than to look at it.
    for one in handed:
        if isinstance(one, asyncio.Future) and not one.done():
            try:
                await one
            except Exception:  # the future keeps it
                continue
