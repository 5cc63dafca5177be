"""A long run at 500 events a second: does anything grow?

The writer (this process) commits ten events in a transaction, fifty times a second; a process `app
relay` sends them; a process like `app worker` applies each, with an inbox row and an effect. A scale of
one is an hour. It is no part of a run of all areas: `nox -s bench -- --area soak --rounds 1`.

- Every five seconds: the resident memory and the file descriptors of each process, the sizes of the
  tables outbox and inbox with their indexes, the rows of the inbox, and the latency from the making of
  an event to the handler's statement.
- *growth an hour*: the slope of a line through the samples (least squares) after a warm-up of a quarter
  of the run, five minutes at most. *mean*: of the same samples. The ratio is near zero where nothing
  grows; in a run of minutes the slope of a noisy figure says little.
- Rows of the inbox grow until their retention, which is 32 days for a service. Here they are kept for a
  minute, and deleted every twenty seconds. The effects are no part of the service: the benchmark
  deletes them with each sample. Not one may be missing at the end, nor be there twice.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import psutil
from harness import Counted, Side, Stage, process, run, until_ready
from outbox import Filled, filled, relay_process
from results import Area, Comparison
from sqlalchemy import text

from app.platform.database import retention
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import EventType
from app.platform.http.server import serve
from app.platform.kafka.admin import provision
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics
from app.platform.outbox.wakeup import notifying
from app.platform.runtime import Configuration
from app.platform.service import Component, Role, Service

HOUR = 3600.0
RATE, TOGETHER = 500, 10  # events a second, events in a transaction
SAMPLE_SECONDS, WARM_UP_SECONDS = 5.0, 300.0
KEEP_SECONDS, CLEAN_SECONDS = 60.0, 20.0
CAUGHT_UP_SECONDS = 60.0

TABLE = "CREATE TABLE soak_effects (ms float NOT NULL)"
EFFECT = text(
    "INSERT INTO soak_effects (ms) VALUES"
    " (1000 * extract(epoch FROM clock_timestamp() - CAST(:made AS timestamptz)))"
)
TAKE = """
    WITH taken AS (DELETE FROM soak_effects RETURNING ms)
    SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY ms),
        percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) FROM taken
"""
SIZES = """
    SELECT pg_total_relation_size('outbox') / 1048576.0, pg_total_relation_size('inbox') / 1048576.0,
        (SELECT count(*) FROM inbox)
"""

PROCESSES = ["writer", "relay", "consumer"]
# figure: its unit
FIGURES = {
    **{f"memory of the {name}": "MiB" for name in PROCESSES},
    "table outbox": "MiB",
    "table inbox": "MiB",
    **{f"descriptors of the {name}": "files" for name in PROCESSES},
    "inbox": "rows",
    "latency p50": "ms",
    "latency p99": "ms",
}
GROWTH, MEAN = "growth an hour", "mean"


async def apply(event: Counted, uow: UnitOfWork) -> None:
    await uow.session.execute(EFFECT, {"made": event.timestamp})


SUBSCRIPTION = Subscription("soak", {Counted: apply})


def work(port: int) -> None:
    """Run a process like `app worker` that keeps the inbox for a minute."""
    retention.INTERVAL_SECONDS = CLEAN_SECONDS
    configuration = Configuration.from_environment()
    # The setting is in whole hours.
    keep = {"inbox_retention_hours": KEEP_SECONDS / HOUR}
    kafka = configuration.kafka.model_copy(update=keep)
    part = Component("soak", events=[EventType(Counted)], subscriptions=[SUBSCRIPTION])
    serve(Service([part]), {Role.WORKER}, replace(configuration, kafka=kafka), "127.0.0.1", port)


@dataclass
class Soak:
    """A run, and what was sampled in it: the hour since the warm-up, and the figures."""

    full: Filled
    processes: Mapping[str, psutil.Process]
    written: int = 0
    applied: int = 0
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        begun = time.perf_counter()
        writing = asyncio.create_task(self._write(begun + seconds))
        while not writing.done():
            await asyncio.sleep(SAMPLE_SECONDS)
            taken = await self._sample()
            if time.perf_counter() - begun > min(WARM_UP_SECONDS, seconds / 4):
                self.samples.append((time.perf_counter() / HOUR, taken))
        await writing
        async with asyncio.timeout(CAUGHT_UP_SECONDS):
            while self.applied < self.written:
                await asyncio.sleep(0.1)
                await self._sample()
        assert self.applied == self.written, f"{self.applied} effects of {self.written} events"

    def found(self, figure: str) -> dict[str, float]:
        times = [at for at, _ in self.samples]
        values = [taken[figure] for _, taken in self.samples]
        slope = statistics.linear_regression(times, values).slope
        return {GROWTH: slope, MEAN: statistics.fmean(values)}

    async def _write(self, until: float) -> None:
        due = time.perf_counter()
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self.full.write(range(self.written, self.written + TOGETHER))
            self.written += TOGETHER
            due += TOGETHER / RATE

    async def _sample(self) -> dict[str, float]:
        count, p50, p99 = await self.full.stage.connection.fetchrow(TAKE)
        outbox, inbox, rows = await self.full.stage.connection.fetchrow(SIZES)
        self.applied += count
        sizes = {n: p.memory_info().rss / 2**20 for n, p in self.processes.items()}
        return {
            **{f"memory of the {name}": size for name, size in sizes.items()},
            **{f"descriptors of the {n}": float(p.num_fds()) for n, p in self.processes.items()},
            "table outbox": float(outbox),
            "table inbox": float(inbox),
            "inbox": float(rows),
            "latency p50": p50 or 0.0,
            "latency p99": p99 or 0.0,
        }


async def soaked(stage: Stage, seconds: float) -> Soak:
    full = await filled(stage, 0)
    settings = full.settings
    await provision(settings, required_topics(settings, full.registry, [SUBSCRIPTION]))
    group = {"SERVICE_NAME": settings.kafka_group_id, "KAFKA_GROUP_ID": settings.kafka_group_id}
    async with (
        relay_process(stage) as relay,
        process(stage, sys.executable, __file__, "--work", **group) as consumer,
        notifying(stage.database.engine, full.published),
    ):
        await until_ready(relay, consumer)
        running = [psutil.Process(), relay.process, consumer.process]
        soak = Soak(full, dict(zip(PROCESSES, running, strict=True)))
        await soak.run(seconds)
        return soak


def reporting(soak: Soak, figure: str) -> Callable[[], Awaitable[dict[str, float]]]:
    async def report() -> dict[str, float]:
        return soak.found(figure)

    return report


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    await stage.connection.execute(TABLE)
    soak = await soaked(stage, max(30.0, HOUR * scale))
    print(f"{soak.written:,} events written and applied once each", flush=True)
    yield [Side(name, unit, reporting(soak, name), 1) for name, unit in FIGURES.items()]


COMPARISONS = [
    Comparison(f"{figure}: {GROWTH}, beside its {MEAN}", f"{figure}, {GROWTH}", f"{figure}, {MEAN}")
    for figure in FIGURES
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--work", action="store_true")
    parser.add_argument("--port", type=int)
    arguments, _ = parser.parse_known_args()
    if arguments.work:
        work(arguments.port)
    else:
        run(Area("soak", "A long run", __doc__ or "", COMPARISONS), plan)
