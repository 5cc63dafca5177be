"""The lag of the read side, over all workers. Every API measures it."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import Gauge
from pydantic import Field

from app.platform.config import EnvSettings
from app.platform.events.event import EventRegistry
from app.platform.health import Unhealthy
from app.platform.kafka.admin import TopicAdmin, reading
from app.platform.kafka.lag import LagMeter, pending_offsets
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import group_of
from app.platform.runtime import Runtime

lag_events = Gauge("projection_lag_events", "Events not yet projected", ["projection"])
lag_seconds = Gauge(
    "projection_lag_seconds",
    "For how long the oldest event not yet projected has been in Kafka",
    ["projection"],
)


class ProjectionSettings(EnvSettings):
    """`projections_max_lag_seconds`: an API whose read side lags further is not ready. If unset, the
    lag is only measured."""

    projections_max_lag_seconds: float | None = Field(None, gt=0)


FETCH_SECONDS = 5.0


@dataclass(frozen=True)
class Lag:
    """Events not yet projected, and for how long the oldest of them has been in Kafka."""

    events: int = 0
    seconds: float = 0.0


async def measure(
    settings: KafkaSettings, registry: EventRegistry, projectors: Sequence[Subscription]
) -> dict[str, Lag]:
    """The lag of each projection, by name. Raises MessagingError or KafkaError."""
    topics = sorted({topic for s in projectors for topic in s.topics(registry)})
    found = {}
    async with reading(settings, topics) as client, TopicAdmin.connected(settings) as admin:
        client.pause(*client.assignment())  # until a partition is resumed
        for subscription in projectors:
            group = group_of(subscription.name, settings)
            of_it = subscription.topics(registry)
            partitions = [tp for tp in client.assignment() if tp.topic in of_it]
            committed = await admin.committed_offsets(group, partitions)
            reached = await pending_offsets(client, partitions, committed)
            pending = {tp: (at, end) for tp, (at, end) in reached.items() if at < end}
            found[subscription.name] = await _lag(client, pending)
    return found


async def _lag(client: AIOKafkaConsumer, pending: Mapping[TopicPartition, tuple[int, int]]) -> Lag:
    """Count the pending events, and measure how long the oldest has been in Kafka.

    Control records and aborted transactions do not count.
    """
    for tp, (position, _) in pending.items():
        client.seek(tp, position)
        client.resume(tp)
    now = time.time()
    oldest, waiting, behind = now, set(pending), set(pending)
    deadline = time.monotonic() + FETCH_SECONDS
    while waiting and time.monotonic() < deadline:
        fetched = await client.getmany(*waiting, timeout_ms=200)
        for tp in list(waiting):
            if records := fetched.get(tp):
                oldest = min(oldest, records[0].timestamp / 1000)
            elif await client.position(tp) >= pending[tp][1]:
                behind.discard(tp)
            else:
                continue
            waiting.discard(tp)
            client.pause(tp)
    events = sum(pending[tp][1] - pending[tp][0] for tp in behind)
    return Lag(events, max(0.0, now - oldest))


class Monitor(LagMeter[str, Lag]):
    """The lag of projections, measured."""

    name = "projection lag"
    interval_seconds = 10.0

    def __init__(
        self,
        kafka: KafkaSettings,
        registry: EventRegistry,
        projectors: Sequence[Subscription],
        settings: ProjectionSettings,
    ) -> None:
        super().__init__()
        self._kafka = kafka
        self._registry = registry
        self._projectors = projectors
        self._limit = settings.projections_max_lag_seconds

    async def ready(self) -> None:
        """Raise Unhealthy while a projection lags further than the settings allow."""
        if self._limit is None:
            return
        if self.failure is not None:
            raise Unhealthy(f"lag {self.failure}")
        for name, lag in self.latest.items():
            if lag.seconds > self._limit:
                raise Unhealthy(f"{name} is {lag.seconds:.0f} s behind, {lag.events} events")

    async def _measure(self) -> Mapping[str, Lag]:
        return await measure(self._kafka, self._registry, self._projectors)

    def _export(self, found: Mapping[str, Lag]) -> None:
        lag_events.clear()
        lag_seconds.clear()
        for name, lag in found.items():
            lag_events.labels(name).set(lag.events)
            lag_seconds.labels(name).set(lag.seconds)


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Measure the lag; readiness depends on it if `projections_max_lag_seconds` is set."""
    projectors, settings = runtime.service.projectors, runtime.setting(ProjectionSettings)
    monitor = Monitor(runtime.configuration.kafka, runtime.registry, projectors, settings)
    runtime.health.add_readiness_check("projections", monitor.ready)
    async with monitor.measuring():
        yield
