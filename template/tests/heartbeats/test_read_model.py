"""The read model of heartbeats: what its projector makes of events, its rebuild, its reads."""

import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient, Response
from prometheus_client import REGISTRY
from sqlalchemy import select, text

from app import wiring
from app.heartbeats.events import HeartbeatSent
from app.heartbeats.views import PROJECTIONS, SUBSCRIPTIONS, SourceRow, silent_sources
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.http import versions
from app.platform.kafka.admin import provision
from app.platform.kafka.codec import encode
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import required_topics
from app.platform.projections.lag import Lag, Monitor, ProjectionSettings, measure
from app.platform.tracing import Trace
from tests.fixtures import eventually
from tests.world import Api, NoPublisher, run_cli

(projector,), (rebuildable,) = SUBSCRIPTIONS, PROJECTIONS
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def beat(id: int, source: str, minute: int) -> HeartbeatSent:
    at = NOON + timedelta(minutes=minute)
    return HeartbeatSent(heartbeat_id=id, source=source, timestamp=at)


BEATS = [beat(1, "door", 1), beat(2, "window", 2), beat(3, "door", 3), beat(4, "door", 4)]


@pytest.fixture
async def units(database: Database) -> AsyncIterator[UnitOfWorkFactory]:
    yield UnitOfWorkFactory(database.sessions, lambda _session: NoPublisher())
    for entry in wiring.service.projections:  # the next test's database has no shadows
        await entry.abandon(database)


async def deliver(units: UnitOfWorkFactory, *batches: Sequence[HeartbeatSent]) -> None:
    """There is no inbox here: what comes twice has to be recognised by the projection itself."""
    for batch in batches:
        async with units.begin() as uow:
            await projector.handlers[HeartbeatSent](batch, uow)


async def content(database: Database) -> list[tuple[object, ...]]:
    async with database.sessions() as session:
        rows = await session.execute(select(SourceRow.__table__).order_by(SourceRow.source))
        return [tuple(row) for row in rows]


EXPECTED = [("door", 4, NOON + timedelta(minutes=4)), ("window", 2, NOON + timedelta(minutes=2))]


@pytest.mark.parametrize(
    "batches",
    [
        [BEATS],
        [[each] for each in BEATS],
        [BEATS[::-1]],
        [[each] for each in BEATS[::-1]],
        [BEATS[2:], BEATS[:3], []],
    ],
    ids=["at once", "one by one", "backwards", "one by one backwards", "overlapping"],
)
async def test_duplicates_and_disorder_change_nothing(
    database: Database, units: UnitOfWorkFactory, batches: list[list[HeartbeatSent]]
) -> None:
    await deliver(units, *batches)
    assert await content(database) == EXPECTED


async def test_a_rebuild_equals_the_projection_of_the_events(
    api: Api, database: Database, units: UnitOfWorkFactory
) -> None:
    for source in ("door", "window", "door"):
        await api.http.post("/heartbeats", json={"source": source})
    sent = [HeartbeatSent.model_validate(event) for event in api.published("heartbeat.sent")]
    await deliver(units, sent)
    projected = await content(database)
    assert [row[0] for row in projected] == ["door", "window"]
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE sources SET sent_at = now() WHERE source = 'door'"))
        await connection.execute(text("DELETE FROM sources WHERE source = 'window'"))
    done = await rebuildable.rebuild(database, batch=2).run(lambda progress: None)
    assert done.done == done.expected == 3
    assert await content(database) == projected


async def test_an_event_that_comes_during_a_rebuild_is_not_lost(
    api: Api, database: Database, units: UnitOfWorkFactory
) -> None:
    await api.http.post("/heartbeats", json={"source": "door"})
    rebuild = rebuildable.rebuild(database, batch=2)
    await rebuild.register()
    while await rebuild.fill() is not None:
        pass
    late = beat(7, "window", 7)
    await deliver(units, [late])
    await rebuild.swap()
    assert ("window", 7, late.timestamp) in await content(database)


async def test_the_silent_sources_come_first(database: Database, units: UnitOfWorkFactory) -> None:
    await deliver(units, BEATS)

    async def silent(minute: int | None, limit: int = 10) -> list[str]:
        since = None if minute is None else NOON + timedelta(minutes=minute)
        async with database.sessions() as session:
            return [row.source for row in await silent_sources(session, since, limit)]

    assert await silent(None) == ["window", "door"]
    assert await silent(None, limit=1) == ["window"]
    assert await silent(4) == ["window"]
    assert await silent(2) == []


# Over HTTP


async def send(client: AsyncClient) -> dict[str, Any]:
    source = f"door-{secrets.token_hex(6)}"
    answer = await client.post("/heartbeats", json={"source": source})
    sent: dict[str, Any] = answer.json()
    return sent


async def read(client: AsyncClient, source: str, **parameters: int) -> Response:
    return await client.get(f"/sources/{source}", params=parameters)


async def test_one_reads_what_one_has_written(client: AsyncClient) -> None:
    sent = await send(client)
    answer = await read(client, sent["source"], min_version=sent["id"])
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "source": sent["source"],
        "heartbeat_id": sent["id"],
        "sent_at": sent["sent_at"],
    }
    assert answer.headers["etag"] == f'"{sent["id"]}"'
    assert sent["source"] in (await client.get("/sources", params={"limit": 1000})).text


async def test_a_heartbeat_that_does_not_come_is_said_to_be_late(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "WAIT_SECONDS", 0.1)
    sent = await send(client)
    for source, version in [(sent["source"], sent["id"] + 1_000_000), ("nobody", 1)]:
        answer = await read(client, source, min_version=version)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_source_of_which_nothing_was_heard_is_not_there(client: AsyncClient) -> None:
    assert (await read(client, "nobody")).status_code == 404
    for path in ("/sources/a%20b", "/sources?silent_since=yesterday", "/sources?limit=0"):
        assert (await client.get(path)).status_code == 422


# How far it is behind, and the commands


async def test_lag_is_measured_and_reported(
    kafka_settings: KafkaSettings, producer: KafkaProducer
) -> None:
    registry = EventRegistry(kafka_settings.kafka_client_id, wiring.service.events)
    await provision(kafka_settings, required_topics(kafka_settings, registry, [projector]))
    assert await measure(kafka_settings, registry, [projector]) == {"sources": Lag()}
    await producer.send_all([encode(event, registry, Trace("story")) for event in BEATS])
    settings = ProjectionSettings(projections_max_lag_seconds=600, _env_file=None)
    monitor = Monitor(kafka_settings, registry, [projector], settings)
    await monitor.measure_once()
    await monitor.ready()
    assert monitor.latest["sources"].events == 4
    assert REGISTRY.get_sample_value("projection_lag_events", {"projection": "sources"}) == 4


async def test_the_commands_know_the_projection(
    api: Api, database: Database, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)

    async def says(*arguments: str) -> str:
        done = await run_cli("projections", *arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    await api.http.post("/heartbeats", json={"source": "door"})
    assert "sources         sources\n" in await says("list")
    assert "sources: rebuilt from 1 row in" in await says("rebuild", "sources")
    assert [row[0] for row in await content(database)] == ["door"]


async def test_readiness_and_metrics_tell_of_the_read_side(client: AsyncClient) -> None:
    ready = (await client.get("/health/ready")).json()
    assert "projections" in str(ready)
    await eventually(
        lambda: client.get("/metrics"), lambda answer: "projection_lag_seconds" in answer.text
    )
