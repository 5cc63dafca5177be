"""How far the read side is behind. The gauges tell of all workers, whichever API is asked."""

from prometheus_client import Gauge

lag_events = Gauge("projection_lag_events", "Events not yet projected", ["projection"])
lag_seconds = Gauge(
    "projection_lag_seconds",
    "For how long the oldest event not yet projected has been in Kafka",
    ["projection"],
)
