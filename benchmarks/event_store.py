"""The event store compared with the package eventsourcing: commands and loads a second.

Both work on one real PostgreSQL, in turns. A command loads its stream (of up to 20 events), decides,
and appends one event. The peer keeps no aggregates in memory (its default), and works in threads, as
it is synchronous; our writers are tasks of one loop.

Loads are of streams without a snapshot, so that what is measured is the events, and of a stream with
a snapshot 50 events before its end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from harness import Side, Stage, run
from results import Area, Comparison
from sqlalchemy import make_url

from app.platform.database.engine import Database
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.store import NO_STREAM, EventStore, NewEvent

WRITERS = [1, 8, 32]
LENGTHS = [100, 1_000, 10_000]
SINCE_SNAPSHOT = 50


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


# Snapshots are kept only where they are asked for.
COUNTERS: Category[Added, Counter] = Category(
    "counter", [EventType("counter.added", Added)], Counter, evolve, snapshot_every=10**9
)


class Ours:
    name = "ours"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams = 0

    async def commands(self, writers: int, seconds: float) -> float:
        streams = [self._next() for _ in range(writers)]
        await asyncio.gather(*(self._append(stream) for stream in streams))
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
                await self._append(stream)
        return done

    async def _append(self, stream: int, events: int = 1, version: int = NO_STREAM) -> None:
        new = [NewEvent(uuid4(), Added("x" * 50, n)) for n in range(events)]
        async with self._database.sessions() as session, session.begin():
            await EventStore(session, COUNTERS).append(stream, new, version)

    async def loads(self, length: int, count: int, snapshot: bool) -> float:
        stream, first = self._next(), length - SINCE_SNAPSHOT
        await self._append(stream, first)
        if snapshot:
            async with self._database.sessions() as session, session.begin():
                store = EventStore(session, COUNTERS)
                before = await store.load(stream)
                assert before is not None
                await store.save_snapshot(stream, before)
        await self._append(stream, SINCE_SNAPSHOT, first)
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
    name = "eventsourcing"

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
                "IS_SNAPSHOTTING_ENABLED": "y",  # one is taken only where it is asked for
            }
        )

    async def commands(self, writers: int, seconds: float) -> float:
        return await asyncio.to_thread(self._commands, writers, seconds)

    def _commands(self, writers: int, seconds: float) -> float:
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

    async def loads(self, length: int, count: int, snapshot: bool) -> float:
        return await asyncio.to_thread(self._loads, length, count, snapshot)

    def _loads(self, length: int, count: int, snapshot: bool) -> float:
        id = self._begin(length)
        if snapshot:
            self._application.take_snapshot(id, version=length - SINCE_SNAPSHOT)
        started = time.perf_counter()
        for _ in range(count):
            tally: Tally = self._application.repository.get(id)
            assert tally.version == length
        return count / (time.perf_counter() - started)

    def close(self) -> None:
        self._application.close()


AnySide = Ours | Peer


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    def after_checkpoint(work: Callable[[], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
        async def measure() -> float:
            await stage.settle()
            return await work()

        return measure

    def commands(side: AnySide, writers: int) -> Side:
        work = after_checkpoint(lambda: side.commands(writers, 2 * scale))
        return Side(f"{side.name}, {writers} writers", "commands/s", work)

    def loads(side: AnySide, length: int, snapshot: bool) -> Side:
        count = max(3, int((200 if snapshot else 30_000 // length) * scale))
        work = after_checkpoint(lambda: side.loads(length, count, snapshot))
        return Side(f"{side.name}, {loaded(length, snapshot)}", "loads/s", work)

    ours, peer = Ours(stage.database), Peer(stage.servers.database_url)
    try:
        yield [
            *(commands(side, writers) for writers in WRITERS for side in (ours, peer)),
            *(loads(side, length, False) for length in LENGTHS for side in (ours, peer)),
            *(loads(side, LENGTHS[-1], True) for side in (ours, peer)),
        ]
    finally:
        peer.close()


def loaded(length: int, snapshot: bool) -> str:
    return f"{length:,} events" + (" and a snapshot" if snapshot else "")


WORK = [
    *(f"{writers} writers" for writers in WRITERS),
    *(loaded(length, False) for length in LENGTHS),
    loaded(LENGTHS[-1], True),
]
FIRST, *LONGER = (f"{Ours.name}, {loaded(length, False)}" for length in LENGTHS)
COMPARISONS = [
    *(
        Comparison(f"{work}, beside {Peer.name}", f"ours, {work}", f"{Peer.name}, {work}", ">= 1")
        for work in WORK
    ),
    *(
        Comparison(f"loads: {times} times the events", longer, FIRST, growth=True)
        for times, longer in zip((10, 100), LONGER, strict=True)
    ),
]

if __name__ == "__main__":
    area = Area("event_store", "Event store", __doc__ or "", COMPARISONS)
    run(area, plan, kafka=False, database_pool_size=32)
