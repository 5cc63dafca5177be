"""The lag of consumer groups, measured from outside: it is there when no worker runs."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupLoadInProgressError, KafkaError

from app.platform.events.event import EventRegistry
from app.platform.kafka import metrics
from app.platform.kafka.admin import reading
from app.platform.kafka.errors import BrokerUnavailable, MessagingError
from app.platform.kafka.settings import KafkaSettings, client_options, reason_for
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import begins_at_the_oldest, origins

log = structlog.get_logger(__name__)

MEASURE_TIMEOUT_SECONDS = 30.0
COORDINATOR_SECONDS, COORDINATOR_POLL_SECONDS = 10.0, 0.1

# Consumer, topic and partition, as labels of the gauge.
Series = tuple[str, str, str]

Key = TypeVar("Key")
Value = TypeVar("Value")


@asynccontextmanager
async def administering(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client for the length of the block. Raises BrokerUnavailable."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        reason = await reason_for(error, settings)
        raise BrokerUnavailable(f"lag cannot be measured: {reason}") from error
    finally:
        await admin.close()


async def committed_offsets(
    admin: AIOKafkaAdminClient,
    group: str,
    partitions: Sequence[TopicPartition],
    patience: float = COORDINATOR_SECONDS,
) -> dict[TopicPartition, int]:
    """Fetch the offsets that `group` has committed in `partitions`; those without one are left out.

    A cluster whose first group this is has to make the topic of the offsets, and a coordinator that
    has just begun to be one loads it: for `patience` seconds that is waited for. Raises KafkaError.
    """
    if not partitions:
        return {}
    deadline = time.monotonic() + patience
    while True:
        try:
            found = await admin.list_consumer_group_offsets(group, partitions=[*partitions])
            # aiokafka overlooks an error of the answer as a whole. Then nothing is in it, where
            # otherwise each partition is, with -1 for those of which nothing was committed.
            if found.keys() >= set(partitions):
                return {tp: entry.offset for tp, entry in found.items() if entry.offset >= 0}
            trouble: KafkaError = GroupLoadInProgressError(f"no offsets of {group} were told")
        except KafkaError as error:
            trouble = error
        if not trouble.retriable or time.monotonic() >= deadline:
            raise trouble
        await asyncio.sleep(COORDINATOR_POLL_SECONDS)


async def pending_offsets(
    client: AIOKafkaConsumer,
    partitions: Sequence[TopicPartition],
    committed: Mapping[TopicPartition, int],
) -> dict[TopicPartition, tuple[int, int]]:
    """For each partition: the offset that its group has reached, and the end."""
    starts = await client.beginning_offsets(partitions) if partitions else {}
    ends = await client.end_offsets(partitions) if partitions else {}
    # Nothing committed, or nothing that is still kept: it is counted from the beginning.
    positions = {tp: max(committed.get(tp, 0), starts[tp]) for tp in partitions}
    return {tp: (min(positions[tp], ends[tp]), ends[tp]) for tp in partitions}


async def measure(
    settings: KafkaSettings, registry: EventRegistry, subscriptions: Sequence[Subscription]
) -> dict[Series, int]:
    """Count the messages that each subscription has not handled. Raises BrokerUnavailable."""
    topics = sorted({topic for s in subscriptions for topic in origins(s, registry)})
    found = {}
    async with reading(settings, topics) as client, administering(settings) as admin:
        client.pause(*client.assignment())
        for subscription in subscriptions:
            own = origins(subscription, registry)
            partitions = [tp for tp in client.assignment() if tp.topic in own]
            group = f"{settings.kafka_group_id}.{subscription.name}"
            committed = await committed_offsets(admin, group, partitions)
            pending = await pending_offsets(client, partitions, committed)
            for tp, (position, end) in pending.items():
                # A new group that begins at the end is not behind what is there already.
                if tp in committed or begins_at_the_oldest(tp.topic, settings):
                    found[(subscription.name, tp.topic, str(tp.partition))] = end - position
    return found


class LagMeter(ABC, Generic[Key, Value]):
    """Measures every few seconds; without a measurement there is no series."""

    name: str
    interval_seconds: float

    def __init__(self) -> None:
        self.seen: Mapping[Key, Value] = {}
        self.trouble: str | None = "not measured yet"
        self._reason: str | None = None

    @abstractmethod
    async def _measure(self) -> Mapping[Key, Value]:
        """Raises MessagingError and KafkaError."""

    @abstractmethod
    def _export(self, found: Mapping[Key, Value]) -> None:
        """Let the gauges have these series, and no others of an earlier measurement."""

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch(), name=self.name.replace(" ", "-"))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._export({})

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self.interval_seconds)

    async def look(self) -> None:
        """Measure now. A failure is logged once, and the next look may succeed."""
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_SECONDS):
                self.seen = await self._measure()
        except (MessagingError, KafkaError, TimeoutError) as error:
            self._fails(str(error) or "no answer")
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            log.exception(f"{self.name} not measured", error=trouble)
            self._fails(trouble)
        else:
            self._reason = self.trouble = None
            self._export(self.seen)

    def _fails(self, trouble: str) -> None:
        if trouble != self._reason:
            log.info(f"{self.name} unknown", reason=trouble)
        self._reason, self.trouble = trouble, f"not measured: {trouble}"
        self._export({})  # a value that is no longer measured would keep an alert silent


class GroupLagMeter(LagMeter[Series, int]):
    """The lag of consumers, measured."""

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
