"""Consuming with effects in PostgreSQL: how much group commit, lanes and batch handlers gain.

Run in the environment of a rendered service: `.venv/bin/python <template>/benchmarks/consume.py`.
All sides read the same kind of messages from one real Kafka and write to one real PostgreSQL with
fsync on, in turns, in one process set up as `app worker` sets itself up (uvloop, garbage collector).

- *one transaction per message*: the same handler, inbox and codec in a loop written by hand; the
  offsets are committed once a fetch, which favours it.
- *group commit*, *lanes*, *batch handler*: the service's consumer; a batch handler with what it is
  given by default (2,000), and held to 500 as the others are.
- *floor*: aiokafka's getmany, json.loads, one INSERT ... SELECT FROM unnest by asyncpg alone, then
  the offsets: no inbox, no validation, no ORM, no retries. `x floor` compares with the fastest.

What must hold: group commit 4 x one transaction per message, 2 or 4 lanes 5.5 x, a batch handler
50 x and half of the floor. `cpu us` is this process' processor time for a message: it moves less
than the rates when the machine has other work.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr
from sqlalchemy import BigInteger, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app import logs
from app.database import Base, Database, DatabaseSettings
from app.dev.servers import Servers
from app.health import Health
from app.kafka.admin import provision
from app.kafka.codec import decode, encode
from app.kafka.consumer import consuming
from app.kafka.event import BaseEvent, EventRegistry, EventType
from app.kafka.inbox import claim
from app.kafka.producer import KafkaProducer
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.kafka.topics import wanted
from app.migrate import upgrade
from app.server import collect_less
from app.tracing import Trace
from app.unit_of_work import UnitOfWork, UnitsOfWork

KEYS = 500


class Effect(Base):
    """What the handlers write."""

    __tablename__ = "benchmark_effects"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(String)
    number: Mapped[int] = mapped_column(Integer)


class Counted(BaseEvent):
    """An event of a usual size."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.counted"] = "thing.counted"
    name: str
    number: int


ONE_ROW = text("INSERT INTO benchmark_effects (name, number) VALUES (:name, :number)")
MANY_ROWS = text(
    "INSERT INTO benchmark_effects (name, number)"
    " SELECT * FROM unnest(CAST(:names AS text[]), CAST(:numbers AS int[]))"
)
NEWEST = "SELECT max(id) FROM benchmark_effects"
COUNT = "SELECT count(*) FROM benchmark_effects"

FLOOR = """
    INSERT INTO benchmark_effects (name, number) SELECT * FROM unnest($1::text[], $2::int[])
"""


async def one_row(event: Counted, uow: UnitOfWork) -> None:
    await uow.session.execute(ONE_ROW, {"name": event.name, "number": event.number})


async def many_rows(events: list[Counted], uow: UnitOfWork) -> None:
    columns = {"names": [e.name for e in events], "numbers": [e.number for e in events]}
    await uow.session.execute(MANY_ROWS, columns)


class Silent:
    """Handlers here publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(event)

    async def committed(self) -> None:
        pass


class Bench:
    """Servers, a database and a topic full of messages for each measurement."""

    def __init__(
        self, database: Database, connection: asyncpg.Connection, bootstrap_servers: str
    ) -> None:
        self.database = database
        self.connection = connection
        self.units = UnitsOfWork(database.sessions, lambda _session: Silent())
        self._servers = bootstrap_servers

    @asynccontextmanager
    async def filled_topic(
        self, messages: int, subscription: Subscription
    ) -> AsyncIterator[tuple[KafkaSettings, EventRegistry, KafkaProducer]]:
        name = f"bench-{secrets.token_hex(4)}"
        settings = KafkaSettings(
            kafka_bootstrap_servers=self._servers,
            kafka_client_id=name,
            kafka_group_id=name,
            _env_file=None,
        )
        registry = EventRegistry(name, [EventType(Counted)])
        await provision(settings, wanted(settings, registry, [subscription]))
        async with self.database.engine.begin() as connection:
            await connection.execute(text("TRUNCATE inbox, benchmark_effects RESTART IDENTITY"))
        async with KafkaProducer(settings).running() as producer:
            events = [Counted(name=f"key-{n % KEYS}", number=n) for n in range(messages)]
            for start in range(0, messages, 5_000):
                part = events[start : start + 5_000]
                outcomes = await producer.send_all([encode(e, registry, TRACE) for e in part])
                assert not any(outcomes), outcomes
            yield settings, registry, producer

    async def until_applied(self, messages: int) -> None:
        # The newest id is one step in an index; to count the rows each time would slow what is
        # measured down more than anything in it does.
        while (await self.connection.fetchval(NEWEST) or 0) < messages:
            await asyncio.sleep(0.01)
        while (count := await self.connection.fetchval(COUNT)) < messages:
            await asyncio.sleep(0.01)
        assert count == messages, f"{count} effects of {messages} messages"


TRACE = Trace("benchmark", None, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


class Figures(NamedTuple):
    """Messages a second, from joining the group to the last commit, and what one cost."""

    rate: float
    cpu_us: float


Side = Callable[[Bench, int], Awaitable[Figures]]


class Watch:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, messages: int) -> Figures:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Figures(messages / wall, cpu / messages * 1e6)


def service(subscription: Subscription) -> Side:
    """The service's consumer with that subscription."""

    async def measure(bench: Bench, messages: int) -> Figures:
        async with (
            bench.filled_topic(messages, subscription) as (settings, registry, producer),
            consuming([subscription], registry, settings, bench.units, producer, Health()) as (
                consumer,
            ),
        ):
            while not consumer.status.assigned:
                await asyncio.sleep(0.001)
            watch = Watch()
            await bench.until_applied(messages)
            return watch.figures(messages)

    return measure


def plain(work: Callable[[Bench, EventRegistry, list], Awaitable[None]], at_once: int) -> Side:
    """A loop of getmany, `work` and commit, as one would write it by hand."""
    subscription = Subscription("bench", {Counted: one_row})

    async def measure(bench: Bench, messages: int) -> Figures:
        async with bench.filled_topic(messages, subscription) as (settings, registry, _):
            consumer = AIOKafkaConsumer(
                registry.topic(Counted),
                bootstrap_servers=settings.kafka_bootstrap_servers,
                group_id=settings.kafka_group_id,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            )
            await consumer.start()
            try:
                watch = Watch()
                seen = 0
                while seen < messages:
                    batch = await consumer.getmany(timeout_ms=500, max_records=at_once)
                    records = [record for part in batch.values() for record in part]
                    if records:
                        await work(bench, registry, records)
                        await consumer.commit()
                    seen += len(records)
                return watch.figures(messages)
            finally:
                await consumer.stop()

    return measure


async def one_transaction_each(bench: Bench, registry: EventRegistry, records: list) -> None:
    for record in records:
        event = decode(record.topic, record.value, registry)
        async with bench.units.begin() as uow:
            if await claim(uow.session, "bench", [event.event_id]):
                await one_row(event, uow)


async def multi_row_insert(bench: Bench, registry: EventRegistry, records: list) -> None:
    rows = [json.loads(record.value) for record in records]
    names, numbers = [row["name"] for row in rows], [row["number"] for row in rows]
    await bench.connection.execute(FLOOR, names, numbers)


def subscription(handler: object, **options: object) -> Subscription:
    return Subscription("bench", {Counted: handler}, **options)  # type: ignore[dict-item,arg-type]


# name, messages in a round, what runs
SIDES: list[tuple[str, int, Side]] = [
    ("one transaction per message", 2_000, plain(one_transaction_each, 500)),
    ("group commit", 10_000, service(subscription(one_row))),
    ("group commit, 2 lanes", 10_000, service(subscription(one_row, concurrency=2))),
    ("group commit, 4 lanes", 10_000, service(subscription(one_row, concurrency=4))),
    ("batch handler", 100_000, service(subscription(many_rows, batch=True))),
    (
        "batch handler, batches of 500",
        100_000,
        service(subscription(many_rows, batch=True, batch_size=500)),
    ),
    ("floor, batches of 2,000", 100_000, plain(multi_row_insert, 2_000)),
    ("floor, batches of 500", 100_000, plain(multi_row_insert, 500)),
]


async def run(rounds: int, scale: float, only: str) -> dict[str, list[Figures]]:
    results: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with Servers(Path(folder), "kafka", fresh=True, fsync=True) as servers:
            await upgrade(servers.database_url)
            url = SecretStr(servers.database_url)
            database = Database(DatabaseSettings(database_url=url, _env_file=None))
            async with database.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            connection = await asyncpg.connect(servers.database_url)
            bench = Bench(database, connection, servers.kafka_bootstrap_servers)
            collect_less()
            for number in range(rounds):
                for name, messages, side in SIDES:
                    if only in name:
                        figures = await side(bench, int(messages * scale))
                        results.setdefault(name, []).append(figures)
                        print(f"round {number + 1}: {name}: {figures.rate:,.0f}/s", flush=True)
            await connection.close()
            await database.close()
    return results


def report(results: dict[str, list[Figures]]) -> None:
    medians = {name: statistics.median(f.rate for f in all_) for name, all_ in results.items()}
    base = medians.get(SIDES[0][0], float("nan"))
    floor = max((m for name, m in medians.items() if "floor" in name), default=float("nan"))
    print(f"\n{'':<34}{'median/s':>10}{'spread':>18}{'x one tx':>10}{'x floor':>9}{'cpu us':>8}")
    for name, rounds in results.items():
        median, cpu = medians[name], statistics.median(f.cpu_us for f in rounds)
        spread = f"{min(rounds).rate:,.0f}-{max(rounds).rate:,.0f}"
        print(
            f"{name:<34}{median:>10,.0f}{spread:>18}"
            f"{median / base:>10.1f}{median / floor:>9.2f}{cpu:>8.1f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies the messages.")
    parser.add_argument("--only", default="", help="Only sides whose name contains this.")
    arguments = parser.parse_args()
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    logs.configure("WARNING")
    report(runner(run(arguments.rounds, arguments.scale, arguments.only)))
