"""Counters and states of producer and consumers. `consumer` names a subscription."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from itertools import accumulate

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.platform.kafka.settings import KafkaSettings, reason_for

log = structlog.get_logger(__name__)

# How often the lag is measured, and after how long without an answer the broker counts as away.
LAG_INTERVAL_SECONDS = 5.0
ANSWER_SECONDS = 10.0

send_failures = Counter(
    "kafka_send_failures_total", "Messages that were not acknowledged", ["topic", "error"]
)
topic_refusals = Counter(
    "kafka_topic_refusals_total",
    "Messages that a topic did not take for a reason that passes, by the name of Kafka's error",
    ["topic", "reason"],
)
events_lost = Counter(
    "kafka_events_lost_total",
    "Events not delivered though their transaction committed, or may have (publishing after commit)",
    ["topic"],
)
producer_replacements = Counter(
    "kafka_producer_replacements_total", "Producers replaced after a fatal error"
)

messages_consumed = Counter(
    "kafka_messages_consumed_total", "Messages whose effects are committed", ["consumer", "topic"]
)
messages_failed = Counter(
    "kafka_messages_failed_total",
    "Handler calls that failed, by kind: transient or permanent",
    ["consumer", "topic", "kind"],
)
messages_retried = Counter(
    "kafka_messages_retried_total",
    "Attempts after the first, by place: in_place or delay_topic",
    ["consumer", "topic", "place"],
)
messages_dead_lettered = Counter(
    "kafka_messages_dead_lettered_total",
    "Messages written to the dead letter topic",
    ["consumer", "topic"],
)
messages_undecodable = Counter(
    "kafka_messages_undecodable_total",
    "Messages that no version of their event can be read from, written to the dead letter topic",
    ["consumer", "topic"],
)
tombstones_skipped = Counter(
    "kafka_tombstones_skipped_total", "Messages without a value, skipped", ["consumer", "topic"]
)
messages_expired = Counter(
    "kafka_messages_expired_total",
    "Messages that retention deleted before they were handled",
    ["consumer", "topic"],
)
inbox_duplicates = Counter(
    "kafka_inbox_duplicates_total", "Messages already applied, and skipped", ["consumer", "topic"]
)
infrastructure_waits = Counter(
    "kafka_infrastructure_waits_total", "Waits for database or broker", ["consumer"]
)
batch_size = Histogram(
    "kafka_batch_size",
    "Messages in a fetched batch",
    ["consumer"],
    buckets=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000],
)
handler_time = Histogram(
    "kafka_handler_seconds", "Time of a handler call, without commit", ["consumer", "event_type"]
)
lag = Gauge("kafka_consumer_lag", "Messages not yet handled", ["consumer", "topic", "partition"])
paused = Gauge(
    "kafka_consumer_paused",
    "1 while the subscription takes nothing, by reason: overload or infrastructure",
    ["consumer", "reason"],
)


class Deliveries(Collector):
    """Counts what Kafka has acknowledged, and how long that took, by topic.

    Many at once, and one in a fraction of the time of a Counter and a Histogram: those two would be
    half of what the service adds to a send.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def add(self, topic: str, seconds: float, messages: int = 1) -> None:
        """`messages` were acknowledged, each after so many seconds."""
        if topic not in self._buckets:
            self._buckets[topic], self._seconds[topic] = [0] * len(Histogram.DEFAULT_BUCKETS), 0.0
        self._buckets[topic][bisect_left(Histogram.DEFAULT_BUCKETS, seconds)] += messages
        self._seconds[topic] += seconds * messages

    def collect(self) -> Iterator[Metric]:
        sent = CounterMetricFamily(
            "kafka_messages_sent_total", "Messages acknowledged by Kafka", labels=["topic"]
        )
        latency = HistogramMetricFamily(
            "kafka_message_latency_seconds", "From send to acknowledgement", labels=["topic"]
        )
        bounds = [*map(str, Histogram.DEFAULT_BUCKETS[:-1]), "+Inf"]
        for topic, counts in list(self._buckets.items()):
            up_to = list(accumulate(counts))
            sent.add_metric([topic], up_to[-1])
            latency.add_metric([topic], list(zip(bounds, up_to, strict=True)), self._seconds[topic])
        yield sent
        yield latency


deliveries = Deliveries()
REGISTRY.register(deliveries)


def begin_at_zero(consumer: str, origins: Mapping[str, str]) -> None:
    """Have the counts of a consumer before there is anything to count.

    `increase` and `rate` see no first event that makes a series: it has to be there before. Of each
    topic that is read, `origins` has the one that its messages first came from.
    """
    for topic, origin in origins.items():
        messages_consumed.labels(consumer, topic)
        inbox_duplicates.labels(consumer, topic)
        messages_undecodable.labels(consumer, topic)
        tombstones_skipped.labels(consumer, topic)
        messages_expired.labels(consumer, topic)
        for kind in ("transient", "permanent"):
            messages_failed.labels(consumer, topic, kind)
        messages_retried.labels(consumer, topic, "in_place")
        messages_retried.labels(consumer, origin, "delay_topic")
        messages_dead_lettered.labels(consumer, origin)
    infrastructure_waits.labels(consumer)
    for reason in ("overload", "infrastructure"):
        paused.labels(consumer, reason)


class Draining(Exception):
    """The consumer is losing its partitions or stopping: what has not begun is left undone."""


class Waiting(Enum):
    """The reason why a consumer takes no messages."""

    WORK = "its database, or for Kafka to take what it sends"
    BROKER = "an answer of Kafka"


class ConsumerStatus:
    """The state of a consumer, and whether it makes progress."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.draining = asyncio.Event()
        self.assigned = False
        self._troubles: dict[Waiting, str] = {}
        self.overload: str | None = None
        self.missing: str | None = None
        self._last_progress = time.monotonic()

    def misses(self, reason: str | None) -> None:
        """Some topics are not there, says `reason`; None: all are."""
        if reason is not None and reason != self.missing:
            log.warning("topics missing", consumer=self.consumer, reason=reason)
        self.missing = reason

    def progressed(self) -> None:
        self._last_progress = time.monotonic()

    @property
    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._last_progress

    def check_draining(self) -> None:
        """Raises Draining when nothing new should begin."""
        if self.draining.is_set():
            raise Draining

    async def wait(self, seconds: float) -> None:
        """Wait for `seconds`. Raises Draining as soon as the consumer drains."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.progressed()
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self.draining.wait()
            except TimeoutError:
                continue
            raise Draining
        self.check_draining()

    @property
    def trouble(self) -> str | None:
        """Why the consumer takes nothing; None while it does."""
        return next(iter(self._troubles.values()), None)

    def blocked(self, reason: str, where: Waiting = Waiting.WORK) -> None:
        """The consumer takes nothing, because of `reason`, until `unblocked`."""
        if where not in self._troubles:
            log.warning("consumer waits", consumer=self.consumer, reason=reason)
        self._troubles[where] = reason
        paused.labels(self.consumer, "infrastructure").set(1)
        self._waited(where)

    def unblocked(self, where: Waiting = Waiting.WORK) -> None:
        after = self._troubles.pop(where, None)
        if after is not None:
            log.info("consumer goes on", consumer=self.consumer, after=after)
        if not self._troubles:
            paused.labels(self.consumer, "infrastructure").set(0)
        self._waited(where)

    def _waited(self, where: Waiting) -> None:
        # Whether Kafka answers is asked beside the work: it tells nothing of a handler that hangs.
        if where is Waiting.WORK:
            self.progressed()


class LagMeter:
    """Compares the ends of the assigned partitions with what was handled, every few seconds.

    It is also how a consumer learns that the broker is away: fetching just returns nothing then.
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
            lag.remove(self._consumer, tp.topic, str(tp.partition))
        self._measured.clear()
        self._handled = {}

    def handled(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._handled.update(offsets)

    @asynccontextmanager
    async def measuring(self, client: AIOKafkaConsumer) -> AsyncIterator[None]:
        task = asyncio.create_task(self._measure(client), name=f"consumer-{self._consumer}-lag")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._status.unblocked(Waiting.BROKER)
            self.revoked()

    async def _measure(self, client: AIOKafkaConsumer) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._measure_once(client)
            except (TimeoutError, KafkaTimeoutError, KafkaConnectionError):
                reason = await reason_for(KafkaConnectionError(), self._settings)
                self._status.blocked(f"Kafka does not answer: {reason}", Waiting.BROKER)
            except KafkaError as error:  # an answer, such as in the middle of a rebalance
                log.debug("lag not measured", consumer=self._consumer, error=repr(error))
            else:
                self._status.unblocked(Waiting.BROKER)
            await asyncio.sleep(LAG_INTERVAL_SECONDS)

    async def _measure_once(self, client: AIOKafkaConsumer) -> None:
        # The client would wait for those of a deleted topic as for a broker that is away.
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
                # What retention has deleted waits for nobody any more.
                gauge = lag.labels(self._consumer, tp.topic, tp.partition)
                gauge.set(max(0, end - max(handled, beginnings[tp])))
                self._measured.add(tp)

    async def _seed(self, client: AIOKafkaConsumer, tp: TopicPartition) -> None:
        # Where nothing is committed, the consumer tells where it begins.
        offset = await client.committed(tp)
        if tp in self._handled and self._handled[tp] is None:
            self._handled[tp] = offset
