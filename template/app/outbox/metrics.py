"""What relays count. The gauges tell of the whole outbox, whichever process is asked."""

from prometheus_client import Counter, Gauge, Histogram

pending = Gauge("outbox_pending", "Events that wait to be sent")
oldest_age = Gauge("outbox_oldest_age_seconds", "Age of the oldest event that waits to be sent")
parked = Gauge("outbox_parked", "Events that could not be sent and were set aside")
held = Gauge("outbox_held", "Events set aside behind one of their key that could not be sent")

relayed = Counter("outbox_relayed_total", "Events that Kafka has acknowledged", ["topic"])
failures = Counter(
    "outbox_send_failures_total", "Sends that failed for the event's own reasons", ["topic"]
)
outages = Counter("outbox_outages_total", "Waits for broker or database", ["what"])
batch_size = Histogram(
    "outbox_relay_batch_size",
    "Rows of a batch",
    buckets=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
)
batch_time = Histogram("outbox_relay_batch_seconds", "From the lock of a batch to its commit")
