"""Heartbeats as the streams of their sources: one transaction, history, and the command line."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy import func, select, text
from typer.testing import Result

from app import wiring
from app.heartbeats import storage
from app.heartbeats.repository import Heartbeat, HeartbeatRepository
from app.heartbeats.service import HeartbeatService
from app.heartbeats.stream import SOURCES, EventSourcedHeartbeats, SourceHeard, SourceState, evolve
from app.platform.background import WakeUp
from app.platform.database.engine import Base, Database
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.errors import InvalidTransition
from app.platform.event_store.model import EventRow, SnapshotRow
from app.platform.event_store.store import EventStore
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.outbox.model import OutboxRow
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.settings import OutboxSettings
from app.platform.tracing import Trace, bind_trace
from tests.world import run_cli

# Each version of each event, as it was stored. Lines are added, and never changed or taken out.
GOLDEN = [
    (
        "source.heard",
        1,
        {"source_id": 3, "source": "door", "heartbeat_id": 7},
        SourceHeard(source_id=3, source="door", heartbeat_id=7),
    ),
]


@pytest.mark.parametrize(("name", "version", "data", "event"), GOLDEN)
def test_an_event_of_every_version_still_loads(
    name: str, version: int, data: dict[str, Any], event: SourceHeard
) -> None:
    assert SOURCES.read(name, version, json.dumps(data)) == event
    entry = SOURCES.type_of(event)
    assert (name, version) != (entry.name, entry.version) or (
        json.loads(entry.adapter.dump_json(event)) == data
    )


def test_every_version_has_a_golden_sample_and_none_is_published() -> None:
    assert [(name, version) for name, version, *_ in GOLDEN] == [
        (entry.name, version) for entry in SOURCES.types for version in range(1, entry.version + 1)
    ]
    assert not any(issubclass(entry.model, BaseEvent) for entry in SOURCES.types)


def test_heartbeats_add_up_and_what_cannot_follow_is_refused() -> None:
    first = evolve(None, SourceHeard(3, "door", 7))
    assert evolve(first, SourceHeard(3, "door", 9)) == SourceState(3, "door", 2, 9)
    for other in (SourceHeard(4, "door", 9), SourceHeard(3, "door", 7)):
        with pytest.raises(InvalidTransition):
            evolve(first, other)


class Sensors:
    """The heartbeats of some sources, through the service as it is wired, with the outbox."""

    def __init__(self, database: Database) -> None:
        self.database = database
        registry, published = EventRegistry("house", wiring.service.events), WakeUp()
        options = OutboxSettings(_env_file=None)
        self.units = UnitOfWorkFactory(
            database.sessions,
            lambda session: OutboxPublisher(session, registry, options, 1_000_000, published),
        )

    async def send(self, *sources: str, command: str | None = None) -> list[Heartbeat]:
        with bind_trace(Trace("story", command_id=command, actor="ada")):
            async with self.units.begin() as uow:
                service = HeartbeatService(storage.repository(uow.session), uow.events)
                return [await service.send(source) for source in sources]

    async def count(self, *models: type[Base]) -> list[int]:
        async with self.database.sessions() as session:
            counts = [await session.scalar(select(func.count()).select_from(m)) for m in models]
            return [count or 0 for count in counts]

    async def folded(self) -> list[SourceState]:
        async with self.database.sessions() as session:
            store = EventStore(session, SOURCES)
            return [each.state for each in await store.load_many(await store.streams(0, 100))]


@pytest.fixture
def sensors(database: Database) -> Sensors:
    return Sensors(database)


# One transaction


async def test_a_heartbeat_its_event_and_its_message_are_atomic(sensors: Sensors) -> None:
    assert storage.repository is EventSourcedHeartbeats
    first, second = await sensors.send("door", "door")
    assert [state.last_heartbeat_id for state in await sensors.folded()] == [second.id]
    assert first.id < second.id
    async with sensors.database.sessions() as session:
        stored = await EventStore(session, SOURCES).events(1)
        rows = [*await session.scalars(select(Heartbeat).order_by(Heartbeat.id))]
        sent = [json.loads(v) for v in await session.scalars(select(OutboxRow.value))]
    assert [row.sent_at for row in rows] == [each.recorded_at for each in stored]
    assert [datetime.fromisoformat(each["timestamp"]) for each in sent] == [
        each.recorded_at for each in stored
    ]
    assert stored[0].metadata == {"correlation_id": "story", "actor": "ada"}


async def test_nothing_is_left_of_a_transaction_that_fails(sensors: Sensors) -> None:
    async def fail() -> None:
        async with sensors.units.begin() as uow:
            await HeartbeatService(EventSourcedHeartbeats(uow.session), uow.events).send("door")
            raise RuntimeError("at the end")

    with pytest.raises(RuntimeError, match="at the end"):
        await fail()
    assert await sensors.count(EventRow, Heartbeat, OutboxRow) == [0, 0, 0]


async def test_heartbeats_of_one_source_take_turns_and_none_is_refused(sensors: Sensors) -> None:
    await asyncio.gather(*(sensors.send("door", "window") for _ in range(12)))
    assert [(state.source, state.heartbeats) for state in await sensors.folded()] == [
        ("door", 12),
        ("window", 12),
    ]
    assert await sensors.count(EventRow, Heartbeat, OutboxRow) == [24, 24, 24]


async def test_a_repeated_command_appends_and_publishes_nothing(sensors: Sensors) -> None:
    first = await sensors.send("door", "door", command="key-1")
    again = await sensors.send("door", "door", command="key-1")
    assert [each.id for each in again] == [each.id for each in first]
    assert await sensors.count(EventRow, Heartbeat, OutboxRow) == [2, 2, 2]
    await sensors.send("door", command="key-2")
    assert await sensors.count(EventRow) == [3]


async def test_a_long_stream_gets_a_snapshot_and_loading_begins_there(
    sensors: Sensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = replace(SOURCES, snapshot_every=2)
    monkeypatch.setattr("app.heartbeats.stream.SOURCES", often)
    await sensors.send(*["door"] * 5)
    async with sensors.database.sessions() as session:
        (row,) = await session.scalars(select(SnapshotRow))
        loaded = await EventStore(session, SOURCES).load(1)
    assert (row.version, row.state["heartbeats"]) == (4, 4)
    assert loaded is not None
    assert [loaded.state] == await sensors.folded()


# Over HTTP


async def source_of(client: AsyncClient, heartbeats: int) -> str:
    source = f"door-{secrets.token_hex(6)}"
    for _ in range(heartbeats):
        await client.post("/heartbeats", json={"source": source}, headers={"X-Actor": "ada"})
    return source


async def test_a_source_has_a_history_page_by_page(client: AsyncClient) -> None:
    url = f"/heartbeats/{await source_of(client, 3)}/events"
    first = (await client.get(url, params={"limit": 2})).json()
    rest = (await client.get(url, params={"after": first["next_after"]})).json()
    events = first["events"] + rest["events"]
    assert [event["version"] for event in events] == [1, 2, 3]
    assert {event["type"] for event in events} == {"source.heard"}
    assert events[0]["metadata"]["actor"] == "ada"
    assert rest["next_after"] is None
    assert (await client.get("/heartbeats/nobody/events")).status_code == 404


async def test_a_count_is_shown_as_it_was(client: AsyncClient) -> None:
    source = await source_of(client, 3)
    url = f"/heartbeats/{source}"
    events = (await client.get(f"{url}/events")).json()["events"]
    second = datetime.fromisoformat(events[1]["recorded_at"])
    moment = timedelta(microseconds=1)

    async def at(time: datetime) -> Any:
        return (await client.get(f"{url}/as-of", params={"time": time.isoformat()})).json()

    assert (await client.get(f"{url}/as-of", params={"version": 2})).json() == await at(second)
    assert await at(second) == {"source": source, "heartbeats": 2}
    assert (await at(second - moment))["heartbeats"] == 1
    assert (await at(second - timedelta(days=1)))["status"] == 404
    assert (await client.get(f"{url}/as-of", params={"version": 4})).status_code == 404
    both = {"version": "1", "time": second.isoformat()}
    for parameters in (both, {}, {"time": "yesterday"}, {"version": "0"}):
        assert (await client.get(f"{url}/as-of", params=parameters)).status_code == 422


# The command line

# What they print may stand between lines of the log: other tests' service runs in this process.
Cli = Callable[..., Awaitable[Result]]


@pytest.fixture
def cli(sensors: Sensors, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)

    async def invoke(*arguments: str) -> Result:
        return await run_cli("event-store", *arguments, "--category", "source")

    return invoke


async def test_streams_and_their_events_are_shown(cli: Cli, sensors: Sensors) -> None:
    await sensors.send("door", "door", command="key-1")
    listed = (await cli("streams")).stdout
    assert "1  version 2  door  " in listed
    assert "1 stream\n" in listed
    shown = (await cli("show", "1")).stdout
    assert "source.heard\n  actor: ada\n  command_id: key-1\n  correlation_id: story\n" in shown
    assert '"source": "door"' in shown
    missing = await cli("show", "99")
    assert missing.exit_code == 1
    assert "error: there is no source 99\n" in missing.stderr


CORRUPTIONS = {
    "heartbeats is 1, its events say 2": "DELETE FROM heartbeats WHERE id = 1",
    "heartbeats is 3, its events say 2": "INSERT INTO heartbeats (source) VALUES ('door')",
    "has events, and is not read": "DELETE FROM heartbeats WHERE source = 'door'",
}


@pytest.mark.parametrize(("message", "corruption"), CORRUPTIONS.items())
async def test_rows_that_differ_are_reported_and_repaired(
    cli: Cli, sensors: Sensors, message: str, corruption: str
) -> None:
    await sensors.send("door", "door", "window")
    assert "2 streams, 0 differ, 0 repaired\n" in (await cli("verify")).stdout
    async with sensors.database.engine.begin() as connection:
        await connection.execute(text(corruption))
    answer = await cli("verify", "--patience", "0")
    assert answer.exit_code == 1
    assert f"1: {message}" in answer.stdout
    assert (await cli("verify", "--patience", "0", "--repair")).exit_code == 0
    assert "2 streams, 0 differ, 0 repaired\n" in (await cli("verify")).stdout


async def test_rows_without_events_are_imported(cli: Cli, sensors: Sensors) -> None:
    async with sensors.units.begin() as uow:
        old = HeartbeatService(HeartbeatRepository(uow.session), uow.events)
        for source in ("door", "window", "door"):
            await old.send(source)
    messages = await sensors.count(OutboxRow)
    assert "2 sources imported\n" in (await cli("import")).stdout
    assert "0 sources imported\n" in (await cli("import")).stdout
    assert "2 streams, 0 differ, 0 repaired\n" in (await cli("verify")).stdout
    assert await sensors.count(OutboxRow) == messages
    async with sensors.database.sessions() as session:
        times = [
            *await session.scalars(select(EventRow.recorded_at).order_by(EventRow.recorded_at))
        ]
        rows = [*await session.scalars(select(Heartbeat.sent_at).order_by(Heartbeat.sent_at))]
    assert times == rows
    await sensors.send("door")
    found = {state.source: state.heartbeats for state in await sensors.folded()}
    assert found == {"door": 3, "window": 1}
