"""Metrics of the producer and the consumers. The label `consumer` is a subscription's name."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from app.platform.metrics import LabelledHistogram
from app.platform.tracing import exemplar

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
messages_skipped = Counter(
    "kafka_messages_skipped_total",
    "Messages of types that the consumer does not handle, skipped",
    ["consumer", "topic"],
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
    """The number and the latency of acknowledged messages, by topic.

    It takes many messages at once. A Counter and a Histogram would be half of what the service adds
    to the time of a send.
    """

    def __init__(self) -> None:
        self._latency = LabelledHistogram(
            "kafka_message_latency_seconds",
            "From send to acknowledgement",
            ["topic"],
            Histogram.DEFAULT_BUCKETS[:-1],
        )

    def add(self, topic: str, seconds: float, messages: int = 1) -> None:
        """Count `messages` that were acknowledged, each after `seconds`."""
        self._latency.observe((topic,), seconds, messages, exemplar())

    def collect(self) -> Iterator[Metric]:
        sent = CounterMetricFamily(
            "kafka_messages_sent_total", "Messages acknowledged by Kafka", labels=["topic"]
        )
        for (topic,), messages in self._latency.totals().items():
            sent.add_metric([str(topic)], messages)
        yield sent
        yield from self._latency.collect()


deliveries = Deliveries()
REGISTRY.register(deliveries)


@contextmanager
def timing_handler(consumer: str, event_type: str) -> Iterator[None]:
    """Measure the block as a handler call, with the trace of its span as the exemplar."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        handler_time.labels(consumer, event_type).observe(seconds, exemplar())


def initialise_counters(consumer: str, source_topics: Mapping[str, str]) -> None:
    """Have the counts of a consumer before there is anything to count.

    `increase` and `rate` see no first event that makes a series: it has to be there before. Of each
    topic that is read, `source_topics` has the one that its messages first came from.
    """
    for topic, origin in source_topics.items():
        messages_consumed.labels(consumer, topic)
        inbox_duplicates.labels(consumer, topic)
        messages_undecodable.labels(consumer, topic)
        tombstones_skipped.labels(consumer, topic)
        messages_skipped.labels(consumer, topic)
        messages_expired.labels(consumer, topic)
        for kind in ("transient", "permanent"):
            messages_failed.labels(consumer, topic, kind)
        messages_retried.labels(consumer, topic, "in_place")
        messages_retried.labels(consumer, origin, "delay_topic")
        messages_dead_lettered.labels(consumer, origin)
    infrastructure_waits.labels(consumer)
    for reason in ("overload", "infrastructure"):
        paused.labels(consumer, reason)
