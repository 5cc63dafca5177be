"""Metrics of the outbox. Its gauges describe the whole outbox, and every process measures them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.platform.background import in_background
from app.platform.config import load
from app.platform.database.engine import Probe
from app.platform.database.errors import is_unavailable, summary
from app.platform.health import Unhealthy
from app.platform.outbox.settings import OutboxSettings
from app.platform.runtime import Runtime
from app.platform.service import Role

relayed = Counter("outbox_relayed_total", "Events that Kafka has acknowledged", ["topic"])
failures = Counter(
    "outbox_send_failures_total", "Sends that failed while the broker was there", ["topic"]
)
outages = Counter("outbox_outages_total", "Waits for broker or database", ["what"])
batch_size = Histogram(
    "outbox_relay_batch_size",
    "Rows of a batch",
    buckets=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
)
batch_time = Histogram("outbox_relay_batch_seconds", "From the lock of a batch to its commit")

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 5.0
# Every process counts, which costs time for each row: a larger number is not worth it.
COUNT_LIMIT = 100_000
MEASURE_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class OutboxStats:
    """A measurement of the outbox: pending events, the oldest of them, and parked events."""

    pending: int = 0
    oldest: datetime | None = None
    parked: int = 0
    blocked: int = 0

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest pending event."""
        if self.oldest is None:
            return 0.0
        return max(0.0, (datetime.now(UTC) - self.oldest).total_seconds())


_GAUGES: Mapping[str, tuple[str, Callable[[OutboxStats], float]]] = {
    "outbox_pending": ("Events that wait to be sent", lambda stats: stats.pending),
    "outbox_oldest_age_seconds": (
        "Age of the oldest event that waits to be sent",
        lambda stats: stats.lag_seconds,
    ),
    "outbox_parked": (
        "Events that could not be sent and were set aside",
        lambda stats: stats.parked,
    ),
    "outbox_held": (
        "Events set aside behind one of their key that could not be sent",
        lambda stats: stats.blocked,
    ),
}


class Gauges(Collector):
    """The last measurement, or no series without one: a 0 that is not measured silences alerts."""

    def __init__(self) -> None:
        self.stats: OutboxStats | None = None

    def collect(self) -> Iterator[Metric]:
        for name, (documentation, value) in _GAUGES.items():
            family = GaugeMetricFamily(name, documentation)
            if self.stats is not None:
                family.add_metric([], value(self.stats))
            yield family


gauges = Gauges()
REGISTRY.register(gauges)


# The row with the lowest id is about the oldest, and costs one step of the index.
_STATS = """
    SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT {limit}) AS counted),
        (SELECT created_at FROM outbox ORDER BY id LIMIT 1),
        count(*) FILTER (WHERE NOT held), count(*) FILTER (WHERE held)
    FROM outbox_parked
"""


async def measure(probe: Probe, count_limit: int | None = None) -> OutboxStats:
    """Measure the outbox outside the pool, counting at most `count_limit` pending events.

    Raises the driver's errors.
    """
    limit = "ALL" if count_limit is None else str(count_limit)
    (row,) = await probe.fetch(_STATS.format(limit=limit))
    return OutboxStats(*row)


class Monitor:
    """Periodic measurement. A result is kept until a measurement fails."""

    def __init__(self, probe: Probe, max_lag_seconds: float) -> None:
        self._probe = probe
        self._max_lag_seconds = max_lag_seconds
        self._gauges = gauges
        self._problem: str | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Monitor"]:
        """Measure every few seconds during the block."""
        try:
            async with in_background(self._measure_forever(), "outbox-monitor"):
                yield self
        finally:
            self._gauges.stats = None

    async def _measure_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(MEASURE_TIMEOUT_SECONDS):
                    await self.measure()
            except Exception as error:  # the next one may succeed; readiness reports it meanwhile
                self._measurement_failed(error)
            else:
                self._problem = None
            await asyncio.sleep(INTERVAL_SECONDS)

    def _measurement_failed(self, error: Exception) -> None:
        self._gauges.stats = None
        reason = summary(error)
        if reason != self._problem:
            level = log.info if is_unavailable(error) else log.error
            level("outbox measurement failed", error=reason)
        self._problem = reason

    async def measure(self) -> OutboxStats:
        """Measure now, and update the gauges."""
        stats = self._gauges.stats = await measure(self._probe, COUNT_LIMIT)
        return stats

    async def ready(self) -> None:
        """Raise Unhealthy while the oldest event has waited for too long."""
        if self._problem is not None:
            raise Unhealthy(f"not measured: {self._problem}")
        if self._gauges.stats is not None:
            lag = self._gauges.stats.lag_seconds
            if lag > self._max_lag_seconds:
                raise Unhealthy(f"the oldest event has waited for {lag:.0f} s")


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Measure the outbox during the block, in a process of any role.

    Late events make only a relay unready: without its API, a service would not send them sooner.
    """
    settings, is_relay = load(OutboxSettings), Role.RELAY in runtime.roles
    monitor = Monitor(runtime.database.metrics_probe, settings.outbox_max_lag_seconds)
    runtime.health.add_readiness_check("outbox", monitor.ready, required=is_relay)
    async with monitor.running():
        yield
