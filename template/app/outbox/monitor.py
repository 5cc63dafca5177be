"""What relays count. The gauges tell of the whole outbox, whichever process is asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database_errors import is_unavailable, summary
from app.outbox.model import OutboxRow, ParkedRow

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


log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Standing:
    """What waits, since when, and what is set aside."""

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


async def standing(engine: AsyncEngine) -> Standing:
    """Raises what the driver raises."""
    # The lowest id is the oldest row, or near enough; it costs one step of the index.
    oldest = select(OutboxRow.created_at).order_by(OutboxRow.id).limit(1)
    query = select(
        select(func.count()).select_from(OutboxRow).scalar_subquery(),
        oldest.scalar_subquery(),
        func.count().filter(ParkedRow.held.is_(False)),
        func.count().filter(ParkedRow.held),
    ).select_from(ParkedRow)
    async with engine.connect() as connection:
        return Standing(*(await connection.execute(query)).one())


class Monitor:
    """Looks every few seconds, and keeps what it saw."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.seen = Standing()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Monitor"]:
        task = asyncio.create_task(self._watch(), name="outbox-monitor")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:  # the next look may succeed; readiness tells meanwhile
                level = log.info if is_unavailable(error) else log.exception
                level("outbox not measured", error=summary(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def look(self) -> Standing:
        """Measure now."""
        before, self.seen = self.seen, await standing(self._engine)
        pending.set(self.seen.pending)
        oldest_age.set(self.seen.lag_seconds)
        parked.set(self.seen.parked)
        held.set(self.seen.held)
        if self.seen.parked > before.parked:
            log.error(
                "events are parked: `app outbox status` shows them",
                parked=self.seen.parked,
                held=self.seen.held,
            )
        return self.seen
