"""The harness of all areas: servers, sides, rounds and the report.

Areas run inside a rendered service's environment, each as a script of its own:

    .venv/bin/python <template>/benchmarks/consume.py --rounds 3 --scale 0.5 --only lanes
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import asyncpg
import psutil
from pydantic import SecretStr
from results import Area, Figures, Samples, number
from sqlalchemy import text

from app.platform import logs
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.migrations import upgrade
from app.platform.dev.process import free_port
from app.platform.dev.servers import Servers
from app.platform.events.event import BaseEvent, EventRegistry, EventType
from app.platform.http.server import tune_garbage_collector
from app.platform.kafka.admin import provision
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import required_topics
from app.platform.tracing import Trace

KEYS = 500
MOST_SECONDS = 400  # a side that takes longer has failed
TRACE = Trace("benchmark")
# Not from the working directory: PYTHONPATH may name another rendering.
APP = (sys.executable, "-P", "-m", "app")


class Counted(BaseEvent):
    """An event of a usual size."""

    key_field: ClassVar[str] = "name"
    event_type: Literal["thing.counted"] = "thing.counted"
    name: str
    number: int
    comment: str = ""


def counted(count: int, comment: str = "") -> list[Counted]:
    return [Counted(name=f"key-{n % KEYS}", number=n, comment=comment) for n in range(count)]


@dataclass
class Stage:
    """The servers of a run, with fsync on and the service's tables in the database."""

    servers: Servers
    database: Database
    connection: asyncpg.Connection

    def settings(self, name: str, **options: object) -> KafkaSettings:
        return KafkaSettings(
            kafka_bootstrap_servers=self.servers.kafka_bootstrap_servers,
            kafka_client_id=name,
            kafka_group_id=name,
            _env_file=None,
            **options,
        )

    async def topics(
        self,
        events: Sequence[EventType],
        subscriptions: Sequence[Subscription] = (),
        **options: object,
    ) -> tuple[KafkaSettings, EventRegistry]:
        """Create new topics for a measurement."""
        name = f"bench-{secrets.token_hex(4)}"
        settings, registry = self.settings(name, **options), EventRegistry(name, events)
        await provision(settings, required_topics(settings, registry, subscriptions))
        return settings, registry

    async def settle(self, *tables: str) -> None:
        """Make the server do its deferred work before a measurement."""
        for table in tables:
            await self.connection.execute(f"VACUUM ANALYZE {table}")
        await self.connection.execute("CHECKPOINT")

    async def truncate(self, *tables: str) -> None:
        async with self.database.engine.begin() as connection:
            await connection.execute(text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE"))


@asynccontextmanager
async def stage(kafka: bool = True, **database_options: object) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        broker: Literal["kafka", "mock"] = "kafka" if kafka else "mock"
        with Servers(Path(folder), broker, fresh=True, fsync=True) as servers:
            if kafka and servers.broker_kind == "mock":
                raise SystemExit(f"no Kafka to measure with: {servers.mock_reason}")
            await upgrade(servers.database_url)
            url = SecretStr(servers.database_url)
            # Statements that fill tables may take minutes.
            options = {"database_command_timeout_seconds": 3600, **database_options}
            settings = DatabaseSettings(database_url=url, _env_file=None, **options)
            database = Database(settings)
            connection = await asyncpg.connect(servers.database_url)
            try:
                yield Stage(servers, database, connection)
            finally:
                await connection.close()
                await database.close()


class Running(NamedTuple):
    """A process that answers at /health/ready."""

    process: psutil.Popen
    port: int

    async def is_ready(self) -> bool:
        assert self.process.poll() is None, f"{self.process.args} has ended"
        return await asyncio.to_thread(self._answers)

    def _answers(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def server_settings(stage: Stage, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the servers of the stage, unless `environment` has others."""
    return {
        **os.environ,
        "DATABASE_URL": stage.servers.database_url,
        "KAFKA_BOOTSTRAP_SERVERS": stage.servers.kafka_bootstrap_servers,
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
        **environment,
    }


@asynccontextmanager
async def process(stage: Stage, *command: str, **environment: str) -> AsyncIterator[Running]:
    """Run `command --port N` with the servers of the stage in its environment."""
    port = free_port()
    started = psutil.Popen([*command, "--port", str(port)], env=server_settings(stage, environment))
    try:
        yield Running(started, port)
    finally:
        started.terminate()
        started.wait()


async def until_ready(*processes: Running) -> None:
    """Wait until all are ready at once: a process that joins a group takes partitions from the others."""
    while not all(await asyncio.gather(*(each.is_ready() for each in processes))):
        await asyncio.sleep(0.05)


class Watch:
    """A stopwatch for elapsed and processor time, of this process or of the given ones."""

    def __init__(self, *processes: Running) -> None:
        self._processes = processes
        self._wall, self._cpu = time.perf_counter(), self._spent()

    def figures(self, count: int) -> Figures:
        """Return the rate per second, and the processor time of one."""
        wall, cpu = time.perf_counter() - self._wall, self._spent() - self._cpu
        return Figures(count / wall, cpu / count * 1e6)

    def _spent(self) -> float:
        if not self._processes:
            return time.process_time()
        return sum(sum(each.process.cpu_times()[:2]) for each in self._processes)


Measured: TypeAlias = float | Figures | dict[str, float]


class Side(NamedTuple):
    """One of the compared sides. It may measure several things at once, by name.

    `rounds` limits the rounds in which a slow side takes part.
    """

    name: str
    unit: str
    measure: Callable[[], Awaitable[Measured]]
    rounds: int = 1_000


Plan = Callable[[Stage, float], AbstractAsyncContextManager[Sequence[Side]]]


async def measure_sides(area: Area, sides: Sequence[Side], rounds: int, only: str) -> None:
    """Measure every side once a round, in alternating order."""
    chosen = [side for side in sides if only in side.name]
    for number_ in range(1, rounds + 1):
        for side in chosen if number_ % 2 else reversed(chosen):
            before = area.sides.get(side.name)
            if number_ > side.rounds or (before and before.failed):
                continue
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    measured = await side.measure()
            except Exception as error:  # said in its row; the others are measured all the same
                samples = area.sides.setdefault(side.name, Samples(side.unit))
                samples.failed = f"{type(error).__name__}: {error}"[:300]
                print(f"round {number_}: {side.name}: {samples.failed}", flush=True)
                continue
            several = measured if isinstance(measured, dict) else {"": measured}
            for measurement, value in several.items():
                name = f"{side.name}, {measurement}" if measurement else side.name
                samples = area.sides.setdefault(name, Samples(side.unit))
                samples.add(value)
                shown = f"{number(samples.values[-1])} {side.unit}"
                print(f"round {number_}: {name}: {shown}", flush=True)
    area.sides = {name: area.sides[name] for name in sorted(area.sides, key=_order(sides))}


def _order(sides: Sequence[Side]) -> Callable[[str], int]:
    def place(name: str) -> int:
        """Return the place of the side with the longest name that `name` begins with."""
        fits = [s for s in sides if name == s.name or name.startswith(f"{s.name}, ")]
        return sides.index(max(fits, key=lambda side: len(side.name)))

    return place


def report(area: Area) -> None:
    print(f"\n{'':<48}{'median':>12}{'spread':>22} {'unit':<12}{'cpu us':>8}")
    for name, samples in area.sides.items():
        spread = " - ".join(number(value) for value in samples.spread)
        cpu = number(sorted(samples.cpu_us)[len(samples.cpu_us) // 2]) if samples.cpu_us else ""
        print(f"{name:<48}{number(samples.median):>12}{spread:>22} {samples.unit:<12}{cpu:>8}")
    print(f"\n{'':<64}{'ratio':>8}  goal")
    for row in area.rows():
        verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
        print(f"{row['name']:<64}{number(row['ratio']):>8}  {row['goal']} {verdict}")
    for place, micros, share in area.lines:
        print(f"{number(micros):>8} us {share:6.1%}  {place}")


def run(area: Area, plan: Plan, turns: int = 1, **stage_options: object) -> None:
    """Run the command line of an area.

    Sides that are long-lived processes have `turns` short turns a round, so that other work of the
    machine affects all of them.
    """
    parser = argparse.ArgumentParser(description=area.method)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies what there is to do.")
    parser.add_argument("--only", default="", help="Only sides whose name contains this.")
    parser.add_argument("--json", type=Path, help="Where to write the results.")
    arguments = parser.parse_args()

    async def measure() -> None:
        async with stage(**stage_options) as on, plan(on, arguments.scale) as sides:
            tune_garbage_collector()
            await measure_sides(area, sides, arguments.rounds * turns, arguments.only)

    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    logs.configure("WARNING", "json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and stop the servers on the way
    runner(measure())
    report(area)
    if arguments.json:
        arguments.json.write_text(json.dumps(area.as_json()))
