"""The lag of consumers: of whole groups, measured without a worker, and of assigned partitions."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from app.platform.background import in_background
from app.platform.events.event import EventRegistry
from app.platform.kafka import metrics
from app.platform.kafka.admin import TopicAdmin, reading
from app.platform.kafka.errors import MessagingError
from app.platform.kafka.settings import KafkaSettings, reason_for
from app.platform.kafka.status import BlockSource, ConsumerStatus
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import group_of, reads_from_earliest, source_topics

log = structlog.get_logger(__name__)

MEASURE_TIMEOUT_SECONDS = 30.0
ASSIGNMENT_INTERVAL_SECONDS = 5.0
# The broker counts as unavailable when it has not answered for so long.
ANSWER_TIMEOUT_SECONDS = 10.0

# Consumer, topic and partition, as labels of the gauge.
Series = tuple[str, str, str]

Key = TypeVar("Key")
Value = TypeVar("Value")


async def pending_offsets(
    client: AIOKafkaConsumer,
    partitions: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, int],
) -> dict[TopicPartition, tuple[int, int]]:
    """Return the offset that the group has reached, and the end, for each partition."""
    starts = await client.beginning_offsets(partitions) if partitions else {}
    ends = await client.end_offsets(partitions) if partitions else {}
    # Without a committed offset, or with one that retention has deleted, count from the beginning.
    positions = {tp: max(committed.get(tp, 0), starts[tp]) for tp in partitions}
    return {tp: (min(positions[tp], ends[tp]), ends[tp]) for tp in partitions}


async def measure(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> dict[Series, int]:
    """Count the messages that each subscription has not handled. Raises MessagingError or KafkaError."""
    topics = sorted({topic for s in subscriptions for topic in source_topics(s, registry)})
    found = {}
    async with reading(settings, topics) as client, TopicAdmin.connected(settings) as admin:
        client.pause(*client.assignment())
        for subscription in subscriptions:
            own = source_topics(subscription, registry)
            partitions = [tp for tp in client.assignment() if tp.topic in own]
            group = group_of(subscription.name, settings)
            committed = await admin.committed_offsets(group, partitions)
            pending = await pending_offsets(client, partitions, committed)
            for tp, (position, end) in pending.items():
                # A new group that starts at the end has no lag behind older messages.
                if tp in committed or reads_from_earliest(tp.topic, own[tp.topic], settings):
                    found[(subscription.name, tp.topic, str(tp.partition))] = end - position
    return found


class LagMeter(ABC, Generic[Key, Value]):
    """A lag that is measured every few seconds. Its series exist only while it can be measured."""

    name: str
    interval_seconds: float

    def __init__(self) -> None:
        self.latest: Mapping[Key, Value] = {}
        self.failure: str | None = "not measured yet"
        self._logged: str | None = None

    @abstractmethod
    async def _measure(self) -> Mapping[Key, Value]:
        """Raises MessagingError and KafkaError."""

    @abstractmethod
    def _export(self, found: Mapping[Key, Value]) -> None:
        """Set the gauges, and remove the series of earlier measurements."""

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        try:
            async with in_background(self._run(), self.name.replace(" ", "-")):
                yield
        finally:
            self._export({})

    async def _run(self) -> None:
        while True:
            await self.measure_once()
            await asyncio.sleep(self.interval_seconds)

    async def measure_once(self) -> None:
        """Measure now. Log a failure once; the next measurement may succeed."""
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_SECONDS):
                self.latest = await self._measure()
        except (MessagingError, KafkaError, TimeoutError) as error:
            self._record_failure(str(error) or "no answer")
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            log.exception(f"{self.name} not measured", error=failure)
            self._record_failure(failure)
        else:
            self._logged = self.failure = None
            self._export(self.latest)

    def _record_failure(self, failure: str) -> None:
        if failure != self._logged:
            log.info(f"{self.name} unknown", reason=failure)
        self._logged, self.failure = failure, f"not measured: {failure}"
        self._export({})  # a stale value would keep an alert silent


class GroupLagMeter(LagMeter[Series, int]):
    """The lag of the consumer groups."""

    name = "consumer lag"
    interval_seconds = 15.0

    def __init__(
        self,
        settings: KafkaSettings,
        registry: EventRegistry,
        subscriptions: Sequence[Subscription],
    ) -> None:
        super().__init__()
        self._settings = settings
        self._registry = registry
        self._subscriptions = subscriptions
        self._exported: set[Series] = set()

    async def _measure(self) -> Mapping[Series, int]:
        return await measure(self._settings, self._registry, self._subscriptions)

    def _export(self, found: Mapping[Series, int]) -> None:
        for series in self._exported - found.keys():
            metrics.lag.remove(*series)
        for series, messages in found.items():
            metrics.lag.labels(*series).set(messages)
        self._exported = set(found)


class AssignmentLag:
    """The lag of a consumer in its assigned partitions, measured every few seconds.

    It is also how an idle consumer notices an outage: fetching from an absent broker returns nothing.
    """

    def __init__(self, status: ConsumerStatus, settings: KafkaSettings) -> None:
        self._consumer = status.consumer
        self._status = status
        self._settings = settings
        self._handled: dict[TopicPartition, int | None] = {}
        self._measured: set[TopicPartition] = set()

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        self._handled = dict.fromkeys(partitions)

    def revoked(self) -> None:
        for tp in self._measured:
            metrics.lag.remove(self._consumer, tp.topic, str(tp.partition))
        self._measured.clear()
        self._handled = {}

    def handled(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._handled.update(offsets)

    @asynccontextmanager
    async def measuring(self, client: AIOKafkaConsumer) -> AsyncIterator[None]:
        try:
            async with in_background(self._measure(client), f"consumer-{self._consumer}-lag"):
                yield
        finally:
            self._status.unblock(BlockSource.BROKER_CHECK)
            self.revoked()

    async def _measure(self, client: AIOKafkaConsumer) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                    await self._measure_once(client)
            except (TimeoutError, KafkaTimeoutError, KafkaConnectionError):
                reason = await reason_for(KafkaConnectionError(), self._settings)
                self._status.block(f"Kafka does not answer: {reason}", BlockSource.BROKER_CHECK)
            except KafkaError as error:  # the broker did answer, for example during a rebalance
                log.debug("lag not measured", consumer=self._consumer, error=repr(error))
            else:
                self._status.unblock(BlockSource.BROKER_CHECK)
            await asyncio.sleep(ASSIGNMENT_INTERVAL_SECONDS)

    async def _measure_once(self, client: AIOKafkaConsumer) -> None:
        # For a deleted topic, the client would wait as it does for an absent broker.
        partitions = [
            tp
            for tp in self._handled
            if tp.partition in (client.partitions_for_topic(tp.topic) or ())
        ]
        if not partitions:
            return
        for tp in partitions:
            if self._handled.get(tp) is None:
                await self._seed(client, tp)
        beginnings = await client.beginning_offsets(partitions)
        ends = await client.end_offsets(partitions)
        for tp, end in ends.items():
            handled = self._handled.get(tp)
            if handled is not None:
                # Messages that retention has deleted no longer count.
                gauge = metrics.lag.labels(self._consumer, tp.topic, tp.partition)
                gauge.set(max(0, end - max(handled, beginnings[tp])))
                self._measured.add(tp)

    async def _seed(self, client: AIOKafkaConsumer, tp: TopicPartition) -> None:
        # Where nothing is committed, `handled` tells the start position.
        offset = await client.committed(tp)
        if tp in self._handled and self._handled[tp] is None:
            self._handled[tp] = offset
