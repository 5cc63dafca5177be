"""The processes of the service, as their own health and metrics describe them, and their recent past."""

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 4.0
KEPT = 60  # samples: five minutes
_MOST_BYTES = 10_000_000

Labels = Mapping[str, str]

# Processes are asked directly, whatever proxy the environment has for the world outside.
_open = build_opener(ProxyHandler({})).open


@dataclass(frozen=True)
class Process:
    """A process at one moment. `problem` tells why it cannot be asked."""

    address: str
    problem: str | None = None
    status: str = "unknown"
    checks: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[tuple[str, Labels, float]] = ()

    def values(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """Return the values of the metric `name` whose labels have all of `labels`."""
        return [
            (found, value)
            for metric, found, value in self.samples
            if metric == name and labels.items() <= found.items()
        ]

    @property
    def info(self) -> Labels:
        """The labels of `target_info`: the service's name and version, and the process's roles."""
        return next((labels for labels, _ in self.values("target_info")), {})

    @property
    def memory(self) -> float | None:
        return next((v for _, v in self.values("process_resident_memory_bytes")), None)


class Processes:
    """The processes at `addresses`, asked every few seconds from the first visit on.

    None stands for this process.
    """

    def __init__(self, addresses: Sequence[str] | None) -> None:
        self._addresses = addresses
        self.latest: list[Process] = []
        self._history: dict[tuple[str, str], deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=KEPT)
        )
        self._task: asyncio.Task[None] | None = None

    async def watch(self, own_address: str) -> None:
        """Ask now if nobody has yet, and go on in the background.

        `own_address` is that of this process, for a console without other addresses.
        """
        if self._addresses is None:
            self._addresses = [own_address]
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="console-processes")
            await self.ask()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.ask()

    async def ask(self) -> None:
        """Ask every process for its readiness and its metrics."""
        asked = (asyncio.to_thread(read_process, address) for address in self._addresses or ())
        self.latest = list(await asyncio.gather(*asked))
        now = time.monotonic()
        for consumer in self._consumers():
            self._remember("consumed", consumer, now)
        self._history["outbox", ""].append((now, self.highest("outbox_pending") or 0.0))

    def _consumers(self) -> set[str]:
        return {
            labels["consumer"]
            for process in self.latest
            for labels, _ in process.values("kafka_messages_consumed_total")
        }

    def _remember(self, what: str, consumer: str, now: float) -> None:
        total = self.total("kafka_messages_consumed_total", consumer=consumer)
        self._history[what, consumer].append((now, total))

    def total(self, name: str, **labels: str) -> float:
        """Add up a counter over all processes."""
        return sum(v for process in self.latest for _, v in process.values(name, **labels))

    def highest(self, name: str, **labels: str) -> float | None:
        """Return the highest value of a gauge that several processes measure; None if none does."""
        found = [v for process in self.latest for _, v in process.values(name, **labels)]
        return max(found, default=None)

    def lag(self, consumer: str) -> float | None:
        """Return the messages that a consumer has not handled; None where no process measures it."""
        series: dict[tuple[str, str], float] = {}
        for process in self.latest:
            for labels, value in process.values("kafka_consumer_lag", consumer=consumer):
                key = labels["topic"], labels["partition"]
                series[key] = max(value, series.get(key, 0.0))
        return sum(series.values()) if series else None

    def paused(self, consumer: str) -> list[str]:
        """Return the reasons for which a process's consumer takes nothing."""
        found = (p.values("kafka_consumer_paused", consumer=consumer) for p in self.latest)
        return sorted({labels["reason"] for values in found for labels, v in values if v})

    def rates(self, consumer: str) -> list[float]:
        """Return the messages a second between the samples of the last minutes, the oldest first."""
        return _differences(self._history["consumed", consumer])

    def pending(self) -> list[float]:
        """Return the events that waited in the outbox at each sample, the oldest first."""
        return [value for _, value in self._history["outbox", ""]]


def _differences(samples: Iterable[tuple[float, float]]) -> list[float]:
    found = list(samples)
    # A process that was started again counts from 0.
    return [
        max(0.0, (after - before) / (later - at))
        for (at, before), (later, after) in pairwise(found)
        if later > at
    ]


def read_process(address: str) -> Process:
    """Ask the process at `address` for `/health/ready` and `/metrics`."""
    address = address.rstrip("/")
    try:
        report = json.loads(_read(f"{address}/health/ready"))
        families = text_string_to_metric_families(_read(f"{address}/metrics").decode())
        samples = [
            (sample.name, sample.labels, sample.value)
            for family in families
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        ]
        return Process(address, None, str(report["status"]), dict(report["checks"]), samples)
    except (URLError, OSError) as error:
        return Process(address, f"no answer: {getattr(error, 'reason', error)}")
    except (ValueError, KeyError, TypeError) as error:
        return Process(address, f"it is no process of a service: {type(error).__name__}")


def _read(url: str) -> bytes:
    try:
        with _open(url, timeout=TIMEOUT_SECONDS) as response:
            body: bytes = response.read(_MOST_BYTES)
    except HTTPError as error:
        if error.code != 503:  # a process that is not ready says why
            raise
        body = error.read(_MOST_BYTES)
    return body
