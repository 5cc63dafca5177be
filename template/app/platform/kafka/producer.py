"""The producer: within its deadline, each message is delivered or ends in a typed error."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from aiokafka import errors as kafka_errors

from app.platform.kafka.client import Batches, Client, hand_over
from app.platform.kafka.codec import Message
from app.platform.kafka.connection import Connection
from app.platform.kafka.deadline import Deadline
from app.platform.kafka.errors import (
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    SendError,
    TopicUnavailable,
)
from app.platform.kafka.refusals import Fault, Obstacles, SendMonitor, fault_of, find_obstacles
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.spans import sending
from app.platform.kafka.topics import forwarded_limit

# At least so many messages get batches of their own, in which each costs half as much. Fewer messages
# share batches with other senders, because a partition takes one batch after the other.
_OWN_BATCHES_FROM = 100
_METADATA_SECONDS = 5.0

Outcome = SendError | None
# The refusal of a message, or the acknowledgement to come from the client that has it.
SendHandle = SendError | asyncio.Future[Any]


class Producer(Protocol):
    """The interface of producers: `KafkaProducer`, and `FakeProducer` in tests."""

    async def send(self, message: Message) -> None:
        """Deliver `message`. Raises SendError if it is not acknowledged within the deadline."""

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        """Deliver all, in order by key; return None or the error of each message.

        After a refused message, none of its topic and key is delivered: they end as NotSent, and can be
        sent again. A topic's temporary refusal ends its messages at once as TopicUnavailable, so that
        the caller can wait without delaying other topics.
        """

    async def ping(self) -> None:
        """Raise SendError while no broker answers."""

    async def check_topics(self) -> None:
        """Raise Unhealthy, with topic and reason, while a topic refuses messages."""


class KafkaProducer:
    """An idempotent producer that needs no broker at its start and replaces a broken client.

    A message whose deadline has passed (BrokerUnavailable) may still arrive.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        self._forwarded_limit = forwarded_limit(settings)
        self._seconds = settings.kafka_send_timeout_seconds
        self._deadline = Deadline(self._seconds)
        self._monitor = SendMonitor()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KafkaProducer"]:
        """Connect in the background for the length of the block; flush and close at its end."""
        async with self._connection.open():
            yield self

    async def ping(self) -> None:
        try:
            async with asyncio.timeout(_METADATA_SECONDS / 2):
                client = await self._connection.ready()
        except TimeoutError:
            raise self._timeout_error() from None
        if not await client.client.force_metadata_update():
            raise BrokerUnavailable(
                f"no broker answers at {self._settings.kafka_bootstrap_servers}"
            )

    async def check_topics(self) -> None:
        await self._monitor.check()

    async def send(self, message: Message) -> None:
        with sending([message]):
            started = time.perf_counter()
            outcome = await self._send(message)
            self._monitor.record(message.topic, outcome, time.perf_counter() - started)
            if outcome is not None:
                raise outcome

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        with sending(messages) as spans:
            started = time.perf_counter()
            if len(messages) == 1:
                outcomes = [await self._send(messages[0])]
            else:
                outcomes = await self._send_all(messages)
                await self._resend_rejected(messages, outcomes)
            self._monitor.record_all(messages, outcomes, time.perf_counter() - started)
            spans.record(outcomes)
        return outcomes

    async def _resend_rejected(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        # A broker refuses a whole batch for one message: send each again to find out which one it was.
        blocked = BlockedKeys()
        unavailable = {o.topic: o for o in outcomes if isinstance(o, TopicUnavailable)}
        outage: Outcome = None
        for index, outcome in enumerate(outcomes):
            if outcome is None:
                continue
            message = messages[index]
            if isinstance(outcome, MessageRejected | NotSent):
                outcome = unavailable.get(message.topic) or blocked.error_for(message) or outage
                outcome = outcome or await self._send(message, own_batch=True)
                outcomes[index] = outcome
                if isinstance(outcome, TopicUnavailable):
                    unavailable[message.topic] = outcome
                elif type(outcome) is BrokerUnavailable:
                    outage = outcome
            blocked.record(message, outcome)

    async def _send(self, message: Message, own_batch: bool = False) -> Outcome:
        try:
            return await self._deadline.wait_for(self._deliver(message, own_batch))
        except TimeoutError:
            return self._timeout_error()

    async def _deliver(self, message: Message, own_batch: bool) -> Outcome:
        if refusal := self._size_error(message):
            return refusal
        while True:
            client = self._connection.client or await self._connection.ready()
            found = await self._find_obstacles(client, [message.topic])
            outcome = found.error_for(message) or await self._deliver_to(client, message, own_batch)
            # The reason may be other messages in its batch, or an earlier batch.
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
            return self._error_of(client, message.topic, error)
        return None

    async def _send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            await self._deadline.wait_for(self._deliver_all(messages, outcomes))
        except TimeoutError:
            outcomes += [
                self._size_error(m) or self._timeout_error() for m in messages[len(outcomes) :]
            ]
        return outcomes

    async def _deliver_all(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        """Fill in `outcomes`; if cancelled, those of the messages that the client has by then."""
        client = self._connection.client or await self._connection.ready()
        handles: list[SendHandle] = []
        try:
            await self._hand_over_all(client, messages, handles)
            await _wait_for_all(dict.fromkeys(handles))
        finally:
            topics = {handle: m.topic for handle, m in zip(handles, messages, strict=False)}
            found = {one: self._outcome(client, topic, one) for one, topic in topics.items()}
            outcomes += [found[handle] for handle in handles]

    async def _hand_over_all(
        self, client: Client, messages: Sequence[Message], handles: list[SendHandle]
    ) -> None:
        """Enqueue all acceptable messages, in order."""
        obstacles = await self._find_obstacles(client, {message.topic for message in messages})
        blocked = BlockedKeys()
        batches = Batches(client)
        few = len(messages) < _OWN_BATCHES_FROM
        refusals, before = client.refusals, dict(client.refusals)
        for message in messages:
            topic = message.topic
            handle: SendHandle | None = (
                blocked.error_for(message)
                or self._size_error(message)
                or obstacles.error_for(message)
            )
            if refusals.get(topic) != before.get(topic):  # the order of the topic is no longer safe
                handle = handle or NotSent("not sent: the topic refused an earlier message")
            if handle is None:
                try:
                    handle = await (hand_over(client, message) if few else batches.add(message))
                except kafka_errors.KafkaError as error:
                    handle = self._error_of(client, topic, error)
            if isinstance(handle, SendError):
                blocked.record(message, handle)
            handles.append(handle)
        await batches.hand_over()

    def _outcome(self, client: Client, topic: str, handle: SendHandle) -> Outcome:
        if isinstance(handle, SendError):
            return handle
        handle.cancel()  # no effect if it is done; otherwise the result is no longer needed
        if handle.cancelled():
            return self._timeout_error()
        error = handle.exception()
        return None if error is None else self._error_of(client, topic, error)

    def _error_of(self, client: Client, topic: str, error: BaseException) -> SendError:
        reason = f"{type(error).__name__}: {error}"
        fault = fault_of(error)
        replaced = fault is Fault.PRODUCER or client is not self._connection.client
        if replaced or client.out_of_sequence:
            self._connection.replace(client, reason)
            return BrokerUnavailable(f"the producer was replaced ({reason})")
        match fault:
            case Fault.RECORD:
                return MessageRejected(f"the broker refused the message: {reason}")
            case Fault.TOPIC:
                return TopicUnavailable(topic, f"{topic}: {reason}", type(error).__name__)
            case Fault.PREDECESSOR:
                return NotSent(str(error))
            case Fault.UNKNOWN:
                self._connection.replace(client, reason)
        return BrokerUnavailable(reason)

    def _timeout_error(self) -> BrokerUnavailable:
        if self._connection.client is None:
            return BrokerUnavailable(f"not connected to Kafka: {self._connection.failure}")
        return BrokerUnavailable(f"no broker acknowledged the message within {self._seconds:g} s")

    def _size_error(self, message: Message) -> Outcome:
        limit = self._settings.kafka_max_message_bytes
        if message.size <= (self._forwarded_limit if message.forwarded else limit):
            return None
        return MessageTooLarge(
            f"the message for {message.topic} has {message.size} bytes,"
            f" more than KAFKA_MAX_MESSAGE_BYTES={limit}"
        )

    async def _find_obstacles(self, client: Client, topics: Iterable[str]) -> Obstacles:
        return await find_obstacles(client, topics, min(_METADATA_SECONDS, self._seconds / 2))


class BlockedKeys:
    """The keys with a refused message. Later messages wait, so that the order by key is kept."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, bytes]] = set()

    def error_for(self, message: Message) -> Outcome:
        """Return the error of `message` if an earlier one of its key was refused."""
        if self._keys and message.key is not None and (message.topic, message.key) in self._keys:
            return NotSent("not sent: an earlier message of its key was refused")
        return None

    def record(self, message: Message, outcome: Outcome) -> None:
        if outcome is not None and message.key is not None:
            self._keys.add((message.topic, message.key))


async def _wait_for_all(handles: Iterable[SendHandle]) -> None:
    # One after the other, because those of a batch are done at the same moment: callbacks for thousands
    # of futures would cost more.
    for handle in handles:
        if isinstance(handle, asyncio.Future) and not handle.done():
            try:
                await handle
            except Exception:  # `_outcome` reads it from the future
                continue
