"""What producer and consumers count. `consumer` is the name of a subscription."""

from prometheus_client import Counter, Gauge, Histogram

messages_sent = Counter("kafka_messages_sent_total", "Messages acknowledged by Kafka", ["topic"])
send_failures = Counter(
    "kafka_send_failures_total", "Messages that were not acknowledged", ["topic", "error"]
)
message_latency = Histogram(
    "kafka_message_latency_seconds", "From send to acknowledgement", ["topic"]
)
events_lost = Counter(
    "kafka_events_lost_total",
    "Events whose transaction committed but which were not delivered (publishing after commit)",
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
    ["consumer", "topic", "error"],
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
