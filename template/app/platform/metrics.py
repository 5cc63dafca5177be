"""Metrics of the process as a whole, and a histogram that costs little."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate

from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from app.platform.background import in_background

LAG_INTERVAL_SECONDS = 0.25

event_loop_lag = Histogram(
    "event_loop_lag_seconds",
    "For how long a callback that was due had to wait for the event loop",
    buckets=[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
)


class LabelledHistogram(Collector):
    """A histogram whose labels are one tuple, and which takes many equal observations at once.

    A Histogram of prometheus_client costs several times as much for each observation.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = list(buckets)
        self._counts: dict[tuple[object, ...], list[int]] = {}
        self._sums: dict[tuple[object, ...], float] = {}
        self._exemplars: dict[tuple[object, ...], dict[int, Exemplar]] = {}

    def observe(
        self,
        labels: tuple[object, ...],
        value: float,
        times: int = 1,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """Count `times` observations of `value` for these values of the labels, in their order.

        Each bucket keeps its last `exemplar`, for scrapers that accept OpenMetrics.
        """
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
            self._sums[labels] = 0.0
        bucket = bisect_left(self._bounds, value)
        counts[bucket] += times
        self._sums[labels] += value * times
        if exemplar is not None:
            found = Exemplar(exemplar, value, time.time())
            self._exemplars.setdefault(labels, {})[bucket] = found

    def totals(self) -> dict[tuple[object, ...], int]:
        """Return the number of observations by the values of the labels."""
        return {labels: sum(counts) for labels, counts in self._counts.items()}

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, counts in list(self._counts.items()):
            exemplars = self._exemplars.get(labels, {})
            up_to = [
                (bound, count)
                if (found := exemplars.get(bucket)) is None
                else (bound, count, found)
                for bucket, (bound, count) in enumerate(
                    zip(bounds, accumulate(counts), strict=True)
                )
            ]
            family.add_metric([str(value) for value in labels], up_to, self._sums[labels])
        yield family


def describe_process(service_name: str, service_version: str, roles: Iterable[str]) -> None:
    """Export `target_info`: what the process is, which its other series do not repeat.

    OpenMetrics and OpenTelemetry have the name and the labels; `service_roles` is our own.
    """
    REGISTRY.set_target_info(
        {
            "service_name": service_name,
            "service_version": service_version,
            "service_roles": ",".join(sorted(roles)),
        }
    )


@asynccontextmanager
async def measuring_event_loop() -> AsyncIterator[None]:
    """Measure the lag of the event loop during the block, several times a second."""
    async with in_background(_measure_event_loop(), "event-loop-lag"):
        yield


async def _measure_event_loop() -> None:
    while True:
        due = time.perf_counter() + LAG_INTERVAL_SECONDS
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        event_loop_lag.observe(max(0.0, time.perf_counter() - due))
