"""The store by itself, with streams of its own."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError
from typer.testing import Result

from app.platform.database.engine import Database
from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category, EventType
from app.platform.event_store.log import EventLog, LogBusy
from app.platform.event_store.model import EventRow, SnapshotRow
from app.platform.event_store.repository import EventSourcedRepository
from app.platform.event_store.store import NO_STREAM, Appended, BrokenStream, EventStore, NewEvent
from app.platform.service import Component, Service
from app.platform.tracing import Trace, bind_trace
from tests.world import run_cli


@dataclass(frozen=True)
class Added:
    number: int


@dataclass(frozen=True)
class Sum:
    total: int
    count: int


def evolve(state: Sum | None, event: Added) -> Sum:
    before = state or Sum(0, 0)
    return Sum(before.total + event.number, before.count + 1)


SUMS: Category[Added, Sum] = Category("sum", [EventType("sum.added", Added)], Sum, evolve)
Store = EventStore[Added, Sum]


def added(*numbers: int) -> list[NewEvent[Added]]:
    return [NewEvent(uuid4(), Added(number)) for number in numbers]


@asynccontextmanager
async def storing(
    database: Database, category: Category[Added, Sum] = SUMS
) -> AsyncIterator[Store]:
    async with database.sessions() as session, session.begin():
        yield EventStore(session, category)


async def append(database: Database, stream: int, expected: int, *numbers: int) -> Appended:
    async with storing(database) as store:
        return await store.append(stream, added(*numbers), expected)


async def versions(database: Database, stream: int) -> list[int]:
    async with storing(database) as store:
        return [stored.version for stored in await store.events(stream)]


def conflicts() -> float:
    name = "event_store_append_conflicts_total"
    return REGISTRY.get_sample_value(name, {"category": "sum"}) or 0.0


# Appending


async def test_a_stream_adds_up(database: Database) -> None:
    first = await append(database, 1, NO_STREAM, 1, 2)
    last = await append(database, 1, 2, 3)
    async with storing(database) as store:
        loaded = await store.load(1)
    assert loaded is not None
    assert (loaded.state, loaded.version) == (Sum(6, 3), 3)
    assert (loaded.began_at, loaded.changed_at) == (first.began_at, last.recorded_at)
    assert last.began_at == first.began_at < last.recorded_at


async def test_a_stream_that_is_not_there_is_none(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1)
    async with storing(database) as store:
        assert await store.load(2) is None


@pytest.mark.parametrize("expected", [NO_STREAM, 1, 3, 7])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_conflicting_append_leaves_the_transaction_usable(
    database: Database, expected: int, count: int
) -> None:
    await append(database, 1, NO_STREAM, 1, 2)
    before = conflicts()
    async with storing(database) as store:
        with pytest.raises(VersionConflict):
            await store.append(1, added(*range(count)), expected)
        await store.append(1, added(3), 2)
    assert await versions(database, 1) == [1, 2, 3]
    assert conflicts() == before + 1


@pytest.mark.parametrize("expected", [NO_STREAM, 1])
async def test_of_appends_at_once_to_one_version_exactly_one_wins(
    database: Database, expected: int
) -> None:
    if expected:
        await append(database, 1, NO_STREAM, 0)
    results = await asyncio.gather(
        *(append(database, 1, expected, n, n) for n in range(12)), return_exceptions=True
    )
    assert sum(isinstance(result, Appended) for result in results) == 1
    assert sum(isinstance(result, VersionConflict) for result in results) == 11
    assert await versions(database, 1) == [*range(1, expected + 3)]


async def test_an_event_is_stored_once(database: Database) -> None:
    events = added(1)
    async with storing(database) as store:
        await store.append(1, events, NO_STREAM)
        with pytest.raises(VersionConflict):
            await store.append(1, events, 1)
        with pytest.raises(VersionConflict):
            await store.append(2, events, NO_STREAM)
        assert await store.find(events[0].event_id) == (1, 1)
    assert await versions(database, 1) == [1]
    assert await versions(database, 2) == []


async def test_writers_of_different_streams_do_not_wait_for_each_other(database: Database) -> None:
    async with asyncio.timeout(5), storing(database) as one, storing(database) as other:
        await one.append(1, added(1), NO_STREAM)
        await other.append(2, added(2), NO_STREAM)


# Keeping


@pytest.mark.parametrize("change", ["UPDATE events SET data = '{}'", "DELETE FROM events"])
async def test_events_are_never_changed(database: Database, change: str) -> None:
    await append(database, 1, NO_STREAM, 1)
    with pytest.raises(DBAPIError, match="events are never changed"):
        async with database.engine.begin() as connection:
            await connection.execute(text(change))
    assert await versions(database, 1) == [1]


async def test_a_stream_can_be_erased_and_no_other_goes_with_it(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1, 2)
    await append(database, 2, NO_STREAM, 3)
    async with storing(database) as store:
        assert await store.erase(1) == 2
    assert await versions(database, 1) == []
    assert await versions(database, 2) == [1]


async def test_the_leave_to_erase_ends_with_the_erasure(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1)
    await append(database, 2, NO_STREAM, 1)
    async with database.sessions() as session:
        await EventStore(session, SUMS).erase(1)
        with pytest.raises(DBAPIError, match="events are never changed"):
            await session.execute(text("DELETE FROM events"))


async def test_a_stream_with_a_hole_is_not_loaded(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1, 2, 3)
    async with database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL event_store.erasing = 'on'"))
        await connection.execute(text("DELETE FROM events WHERE version = 2"))
    with pytest.raises(BrokenStream, match="sum 1 has no event 2"):
        async with storing(database) as store:
            await store.load(1)


# Snapshots


async def save_snapshot(database: Database, stream: int) -> None:
    async with storing(database) as store:
        loaded = await store.load(stream)
        assert loaded is not None
        await store.save_snapshot(stream, loaded)


async def tamper(database: Database) -> None:
    """Makes it visible whether a snapshot was used."""
    async with database.engine.begin() as connection:
        await connection.execute(update(SnapshotRow).values(state={"total": 1000, "count": 1}))


async def test_loading_begins_at_the_snapshot(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1, 2)
    await save_snapshot(database, 1)
    await tamper(database)
    appended = await append(database, 1, 2, 3)
    async with storing(database) as store:
        loaded = await store.load(1)
        (whole,) = await store.load_many([1])
    assert loaded is not None
    assert (loaded.state, loaded.version) == (Sum(1003, 2), 3)
    assert (whole.state, whole.version) == (Sum(6, 3), 3)
    assert (whole.began_at, whole.changed_at) == (appended.began_at, appended.recorded_at)
    assert (loaded.began_at, loaded.changed_at) == (whole.began_at, whole.changed_at)


async def test_a_snapshot_of_another_form_is_passed_over_and_replaced(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1, 2)
    await save_snapshot(database, 1)
    await tamper(database)
    newer: Category[Added, Sum] = Category(SUMS.name, SUMS.types, Sum, evolve, snapshot_version=2)
    async with storing(database, newer) as store:
        loaded = await store.load(1)
        assert loaded is not None
        assert loaded.state == Sum(3, 2)
        await store.save_snapshot(1, loaded)
    async with database.sessions() as session:
        (row,) = await session.scalars(select(SnapshotRow))
        assert (row.state_version, row.state) == (2, {"total": 3, "count": 2})


async def test_an_older_snapshot_replaces_no_newer_one(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1)
    async with storing(database) as store:
        early = await store.load(1)
    await append(database, 1, 1, 2)
    await save_snapshot(database, 1)
    async with storing(database) as store:
        assert early is not None
        await store.save_snapshot(1, early)
    async with database.sessions() as session:
        assert await session.scalar(select(SnapshotRow.version)) == 2


@pytest.mark.parametrize("snapshot", [True, False])
async def test_a_version_of_the_past_is_loaded(database: Database, snapshot: bool) -> None:
    times = [(await append(database, 1, n, n)).recorded_at for n in range(4)]
    if snapshot:
        await save_snapshot(database, 1)
    async with storing(database) as store:
        for version in range(1, 5):
            loaded = await store.load(1, version)
            assert loaded is not None
            assert loaded.state == Sum(sum(range(version)), version)
            assert await store.version_at(1, times[version - 1]) == version
        assert await store.load(1, 5) is None


# Following

WRITERS, APPENDS = 12, 25


class Reader:
    """Reads page after page, going on behind the highest position that it has seen."""

    def __init__(self, database: Database) -> None:
        self._log = EventLog(database.sessions, SUMS)
        self.seen: list[tuple[int, int]] = []
        self._position = 0

    async def read(self) -> int:
        page = await self._log.read_all(self._position, limit=50)
        self.seen += [(stored.stream_id, stored.version) for stored in page]
        self._position = page[-1].position if page else self._position
        return len(page)


async def write(database: Database, stream: int) -> None:
    for version in range(APPENDS):
        async with storing(database) as store:
            await store.append(stream, added(1), version)
            await asyncio.sleep(random.uniform(0, 0.04))  # what a transaction does besides


async def test_a_tailing_reader_beside_twelve_writers_misses_nothing(database: Database) -> None:
    reader = Reader(database)
    async with asyncio.TaskGroup() as tasks:
        writers = [tasks.create_task(write(database, stream)) for stream in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            await reader.read()
    while await reader.read():
        pass
    everything = [(stream, n) for stream in range(WRITERS) for n in range(1, APPENDS + 1)]
    assert sorted(reader.seen) == everything


async def naive(database: Database, after: int) -> list[int]:
    """Read on from a position, as if positions followed the order of commits."""
    async with database.sessions() as session:
        query = select(EventRow.position).where(EventRow.position > after)
        return [*await session.scalars(query.order_by(EventRow.position))]


async def test_read_all_waits_for_transactions_that_commit_late(
    database: Database,
) -> None:
    log = EventLog(database.sessions, SUMS, patience=0.2)
    async with storing(database) as late:
        await late.append(1, added(1), NO_STREAM)
        await append(database, 2, NO_STREAM, 2)
        seen = await naive(database, after=0)
        with pytest.raises(LogBusy):
            await log.read_all(after=0, limit=10)
    assert await naive(database, after=seen[-1]) == []  # the late one is there, and was passed over
    found = await log.read_all(after=0, limit=10)
    assert [stored.stream_id for stored in found] == [1, 2]
    assert found[0].position < seen[0]


async def test_a_page_ends_at_its_limit(database: Database) -> None:
    await append(database, 1, NO_STREAM, *range(5))
    log = EventLog(database.sessions, SUMS)
    first = await log.read_all(0, limit=3)
    rest = await log.read_all(first[-1].position, limit=3)
    assert [len(first), len(rest)] == [3, 2]
    assert await log.read_all(rest[-1].position, limit=3) == []


async def test_positions_ascend_as_versions_do(database: Database) -> None:
    await append(database, 1, NO_STREAM, *range(5))
    found = await EventLog(database.sessions, SUMS).read_all(0, limit=9)
    assert is_ascending([stored.position for stored in found])
    assert [stored.version for stored in found] == [1, 2, 3, 4, 5]


def is_ascending(numbers: Sequence[int]) -> bool:
    return [*numbers] == sorted(set(numbers))


# The repository


async def save(database: Database, stream: int, expected: int, subject: str | None = None) -> Any:
    """Save an event as a command of its own transaction."""
    async with database.sessions() as session, session.begin():
        sums = EventSourcedRepository(session, SUMS)
        return await sums.save(stream, Sum(1, expected + 1), [Added(1)], expected, subject)


async def test_a_repeated_command_returns_its_first_result(database: Database) -> None:
    with bind_trace(Trace("story", command_id="key-1")):
        first = await save(database, 1, NO_STREAM, "new")
        again = await save(database, 2, NO_STREAM, "new")
    await save(database, 1, 1)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again == replace(first, duplicate=True)
    assert await versions(database, 1) == [1, 2]
    assert await versions(database, 2) == []


async def test_two_repositories_of_a_transaction_change_one_stream(database: Database) -> None:
    with bind_trace(Trace("story", command_id="key-1")):
        async with database.sessions() as session, session.begin():
            for version, expected in enumerate((NO_STREAM, 1), 1):
                sums = EventSourcedRepository(session, SUMS)
                saved = await sums.save(1, Sum(version, version), [Added(1)], expected)
                assert not saved.duplicate
    assert await versions(database, 1) == [1, 2]


async def test_a_command_is_recognised_whatever_shared_its_transaction(database: Database) -> None:
    async with database.sessions() as session, session.begin():
        for number, expected in enumerate((NO_STREAM, 1), 1):
            with bind_trace(Trace("story", command_id=f"key-{number}")):
                sums = EventSourcedRepository(session, SUMS)
                await sums.save(1, Sum(number, number), [Added(1)], expected)
    with bind_trace(Trace("story", command_id="key-2")):
        assert (await save(database, 1, 2)).duplicate


async def test_a_command_that_lost_a_race_first_is_recognised(database: Database) -> None:
    await append(database, 1, NO_STREAM, 1)
    with bind_trace(Trace("story", command_id="key-1")):
        async with database.sessions() as session, session.begin():
            sums = EventSourcedRepository(session, SUMS)
            with pytest.raises(VersionConflict):
                await sums.save(1, Sum(2, 1), [Added(1)], NO_STREAM)
            await sums.save(1, Sum(2, 2), [Added(1)], 1)
        assert (await save(database, 1, 2)).duplicate
    assert await versions(database, 1) == [1, 2]


# The command line


async def test_a_command_asks_for_one_of_several_categories(
    database: Database, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(database, 1, NO_STREAM, 1)
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    categories = [SUMS, replace(SUMS, name="product")]
    streams = [SimpleNamespace(category=category) for category in categories]
    service = Service([Component("numbers", streams=streams)])

    async def show(*options: str) -> Result:
        return await run_cli("event-store", "show", "1", *options, service=service)

    assert "sum.added" in (await show("--category", "sum")).stdout
    for options, refusal in {
        (): "choose one with --category; there are: sum, product",
        ("--category", "product"): "there is no product 1",
        ("--category", "total"): "there is no category total; there are: sum, product",
    }.items():
        refused = await show(*options)
        assert refused.exit_code == 1
        assert f"error: {refusal}\n" in refused.stderr
