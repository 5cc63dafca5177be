"""Metrics of the outbox. The gauges describe the whole outbox, and every process measures them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
# Counting costs time for each row, and every process counts: beyond this, more is not worth it.
COUNT_LIMIT = 100_000
MEASURE_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Standing:
    """A measurement of the outbox: what waits, since when, and what is set aside."""

    pending: int = 0
    oldest: datetime | None = None
    parked: int = 0
    held: int = 0

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest event that waits to be sent."""
        if self.oldest is None:
            return 0.0
        return max(0.0, (datetime.now(UTC) - self.oldest).total_seconds())


_GAUGES: Mapping[str, tuple[str, Callable[[Standing], float]]] = {
    "outbox_pending": ("Events that wait to be sent", lambda standing: standing.pending),
    "outbox_oldest_age_seconds": (
        "Age of the oldest event that waits to be sent",
        lambda standing: standing.lag_seconds,
    ),
    "outbox_parked": (
        "Events that could not be sent and were set aside",
        lambda standing: standing.parked,
    ),
    "outbox_held": (
        "Events set aside behind one of their key that could not be sent",
        lambda standing: standing.held,
    ),
}


class Gauges(Collector):
    """The last measurement, or no series at all: a 0 that nobody measured silences alerts."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def collect(self) -> Iterator[Metric]:
        for name, (documentation, value) in _GAUGES.items():
            family = GaugeMetricFamily(name, documentation)
            if self.standing is not None:
                family.add_metric([], value(self.standing))
            yield family


gauges = Gauges()
REGISTRY.register(gauges)


# The lowest id is the oldest row, or near enough; it costs one step of the index.
_STANDING = """
    SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT {limit}) AS counted),
        (SELECT created_at FROM outbox ORDER BY id LIMIT 1),
        count(*) FILTER (WHERE NOT held), count(*) FILTER (WHERE held)
    FROM outbox_parked
"""


async def standing(probe: Probe, count_limit: int | None = None) -> Standing:
    """Measure the outbox beside the pool, counting at most `count_limit` pending events.

    Raises what the driver raises.
    """
    limit = "ALL" if count_limit is None else str(count_limit)
    (row,) = await probe.fetch(_STANDING.format(limit=limit))
    return Standing(*row)


class Monitor:
    """Measures every few seconds, and keeps the result until a measurement fails."""

    def __init__(self, probe: Probe, max_lag_seconds: float) -> None:
        self._probe = probe
        self._max_lag_seconds = max_lag_seconds
        self._gauges = gauges
        self._trouble: str | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Monitor"]:
        task = asyncio.create_task(self._watch(), name="outbox-monitor")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._gauges.standing = None

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(MEASURE_TIMEOUT_SECONDS):
                    await self.look()
            except Exception as error:  # the next look may succeed; readiness tells meanwhile
                self._fails(error)
            else:
                self._trouble = None
            await asyncio.sleep(INTERVAL_SECONDS)

    def _fails(self, error: Exception) -> None:
        self._gauges.standing = None
        reason = summary(error)
        if reason != self._trouble:
            level = log.info if is_unavailable(error) else log.error
            level("outbox not measured", error=reason)
        self._trouble = reason

    async def look(self) -> Standing:
        """Measure now."""
        seen = self._gauges.standing = await standing(self._probe, COUNT_LIMIT)
        return seen

    async def ready(self) -> None:
        """Raises Unhealthy while the oldest event has waited for too long."""
        if self._trouble is not None:
            raise Unhealthy(f"not measured: {self._trouble}")
        if self._gauges.standing is not None:
            lag = self._gauges.standing.lag_seconds
            if lag > self._max_lag_seconds:
                raise Unhealthy(f"the oldest event has waited for {lag:.0f} s")


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Measure the outbox for the length of the block, whatever the process does.

    Only a relay is unready for events that wait: taking an API away would not send them.
    """
    settings, is_relay = load(OutboxSettings), Role.RELAY in runtime.roles
    monitor = Monitor(runtime.database.metrics_probe, settings.outbox_max_lag_seconds)
    runtime.health.add_readiness_check("outbox", monitor.ready, required=is_relay)
    async with monitor.watching():
        yield
