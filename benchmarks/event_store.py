"""The event store beside the package eventsourcing: commands a second, and loads of long streams.

Run in the environment of a rendered service that has the module, with the peer installed beside it
(`uv pip install 'eventsourcing[postgres]==9.5.*'`, then `python benchmarks/event_store.py` there).
Both work on one real PostgreSQL with fsync on, in turns; the medians of the rounds are compared.

A command loads its stream, decides, and appends one event. The peer keeps no aggregates in memory
(its default), and works in threads, as it is synchronous; our writers are tasks of one loop.
"""

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from pydantic import SecretStr
from sqlalchemy import make_url, text

from app.database import Database, DatabaseSettings
from app.dev.servers import Servers
from app.event_sourcing.category import Category, EventType
from app.event_sourcing.store import NO_STREAM, EventStore, NewEvent
from app.migrate import upgrade

WRITERS = [1, 8, 32]
LENGTHS = [100, 1000]


@dataclass(frozen=True)
class Added:
    name: str
    number: int


@dataclass(frozen=True)
class Counter:
    total: int = 0
    count: int = 0


def evolve(state: Counter | None, added: Added) -> Counter:
    before = state or Counter()
    return Counter(before.total + added.number, before.count + 1)


# No snapshots on either side: what is measured is the events.
COUNTERS: Category[Added, Counter] = Category(
    "counter", [EventType("counter.added", Added)], Counter, evolve, snapshot_every=10**9
)


class Ours:
    name = "ours"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams = 0

    def commands(self, writers: int, seconds: float) -> float:
        return asyncio.get_event_loop().run_until_complete(self._commands(writers, seconds))

    async def _commands(self, writers: int, seconds: float) -> float:
        streams = [self._next() for _ in range(writers)]
        await asyncio.gather(*(self._begin(stream) for stream in streams))
        until = time.perf_counter() + seconds
        counts = await asyncio.gather(*(self._write(stream, until) for stream in streams))
        return sum(counts) / seconds

    async def _write(self, stream: int, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            async with self._database.sessions() as session, session.begin():
                store = EventStore(session, COUNTERS)
                loaded = await store.load(stream)
                assert loaded is not None
                added = NewEvent(uuid4(), Added("x" * 50, done))
                await store.append(stream, [added], loaded.version)
            done += 1
            if done % 20 == 0:  # streams of usual length
                stream = self._next()
                await self._begin(stream)
        return done

    async def _begin(self, stream: int, events: int = 1) -> None:
        async with self._database.sessions() as session, session.begin():
            new = [NewEvent(uuid4(), Added("x" * 50, n)) for n in range(events)]
            await EventStore(session, COUNTERS).append(stream, new, NO_STREAM)

    def loads(self, length: int, count: int) -> float:
        return asyncio.get_event_loop().run_until_complete(self._loads(length, count))

    async def _loads(self, length: int, count: int) -> float:
        stream = self._next()
        await self._begin(stream, length)
        started = time.perf_counter()
        for _ in range(count):
            async with self._database.sessions() as session:
                loaded = await EventStore(session, COUNTERS).load(stream)
            assert loaded is not None
            assert loaded.version == length
        return count / (time.perf_counter() - started)

    def _next(self) -> int:
        self._streams += 1
        return self._streams


class Tally(Aggregate):
    @event("Added")
    def add(self, name: str, number: int) -> None:
        self.total = getattr(self, "total", 0) + number
        self.count = getattr(self, "count", 0) + 1


class Peer:
    name = f"eventsourcing {version('eventsourcing')}"

    def __init__(self, url: str) -> None:
        parts = make_url(url)
        host = parts.query.get("host", parts.host)
        self._application = Application[UUID](
            env={
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": str(parts.database),
                "POSTGRES_HOST": str(host),
                "POSTGRES_PORT": str(parts.port or 5432),
                "POSTGRES_USER": str(parts.username),
                "POSTGRES_PASSWORD": parts.password or "none",
                "POSTGRES_POOL_SIZE": "32",
                "POSTGRES_MAX_OVERFLOW": "0",
            }
        )

    def commands(self, writers: int, seconds: float) -> float:
        ids = [self._begin(1) for _ in range(writers)]
        until = time.perf_counter() + seconds
        with ThreadPoolExecutor(writers) as threads:
            return sum(threads.map(lambda id: self._write(id, until), ids)) / seconds

    def _write(self, id: UUID, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            tally: Tally = self._application.repository.get(id)
            tally.add("x" * 50, done)
            self._application.save(tally)
            done += 1
            if done % 20 == 0:
                id = self._begin(1)
        return done

    def _begin(self, events: int) -> UUID:
        tally = Tally()
        for number in range(events - 1):
            tally.add("x" * 50, number)
        self._application.save(tally)
        return tally.id

    def loads(self, length: int, count: int) -> float:
        id = self._begin(length)
        started = time.perf_counter()
        for _ in range(count):
            tally: Tally = self._application.repository.get(id)
            assert tally.version == length
        return count / (time.perf_counter() - started)

    def close(self) -> None:
        self._application.close()


Rates = dict[str, dict[str, list[float]]]


def measure(rounds: int, seconds: float) -> Rates:
    rates: Rates = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:9"  # nothing here needs one
        with Servers(Path(folder), "mock", fresh=True, fsync=True) as servers:
            loop = asyncio.get_event_loop()
            loop.run_until_complete(upgrade(servers.database_url))
            url = SecretStr(servers.database_url)
            database = Database(
                DatabaseSettings(database_url=url, database_pool_size=32, _env_file=None)
            )
            ours, peer = Ours(database), Peer(servers.database_url)
            for number in range(1, rounds + 1):
                rows: list[tuple[str, Callable[[Ours | Peer], float]]] = [
                    *((f"commands/s, {n} writers", commands(n, seconds)) for n in WRITERS),
                    *((f"loads/s, {n} events", loads(n)) for n in LENGTHS),
                ]
                for name, row in rows:
                    sides: Sequence[Ours | Peer] = [ours, peer] if number % 2 else [peer, ours]
                    for side in sides:
                        loop.run_until_complete(checkpoint(database))
                        rate = row(side)
                        rates.setdefault(name, {}).setdefault(side.name, []).append(rate)
                        print(f"round {number}: {name}: {side.name}: {rate:,.0f}", flush=True)
            peer.close()
            loop.run_until_complete(database.close())
    return rates


def commands(writers: int, seconds: float) -> Callable[[Ours | Peer], float]:
    return lambda side: side.commands(writers, seconds)


def loads(length: int) -> Callable[[Ours | Peer], float]:
    return lambda side: side.loads(length, 50_000 // length)


async def checkpoint(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("CHECKPOINT"))


def report(rates: Rates) -> None:
    print(f"\n{'':<24}{Ours.name:>10}{Peer.name:>24}{'ratio':>8}")
    for name, sides in rates.items():
        mine, theirs = (statistics.median(sides[side]) for side in (Ours.name, Peer.name))
        print(f"{name:<24}{mine:>10,.0f}{theirs:>24,.0f}{mine / theirs:>8.2f}")


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of a measurement of writers.")
    arguments = parser.parse_args()
    asyncio.set_event_loop(uvloop.new_event_loop())
    gc.collect()
    gc.freeze()  # as the service's processes do
    gc.set_threshold(10_000)
    report(measure(arguments.rounds, arguments.seconds))
