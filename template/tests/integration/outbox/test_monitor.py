"""What is measured of the outbox, and when a relay says that it is not ready."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY
from sqlalchemy import text

from app.config import Settings
from app.kafka.producer import FakeProducer
from app.main import create_app
from app.outbox import store
from app.outbox.monitor import Monitor
from app.runtime import Configuration, Role
from tests.eventually import eventually
from tests.fixtures.service import database_settings, settings_for
from tests.integration.outbox.conftest import MOVED, Moved, Sold, World, moved


async def test_the_gauges_tell_what_waits_and_what_is_set_aside(world: World) -> None:
    world.producer = FakeProducer([MOVED])
    world.settings = world.settings.model_copy(update={"outbox_max_attempts": 1})
    await world.write(Sold(name="a", number=1), Moved(name="a", number=2))
    async with world.relaying():
        await world.has_parked(2)
    await world.write(*moved(3))
    seen = await Monitor(world.database.engine).look()
    assert (seen.pending, seen.parked, seen.held) == (3, 1, 1)
    assert 0 < seen.lag_seconds < 60
    assert REGISTRY.get_sample_value("outbox_pending") == 3
    assert REGISTRY.get_sample_value("outbox_parked") == 1
    assert REGISTRY.get_sample_value("outbox_held") == 1


async def test_an_empty_outbox_has_no_lag(world: World) -> None:
    seen = await Monitor(world.database.engine).look()
    assert (seen.pending, seen.lag_seconds) == (0, 0.0)


async def test_sent_events_are_counted_by_topic(world: World) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("outbox_relayed_total", {"topic": MOVED}) or 0.0

    before = count()
    await world.write(*moved(7))
    async with world.relaying():
        await world.is_empty()
        await eventually(lambda: asyncio.sleep(0, count() == before + 7))


@asynccontextmanager
async def serving(database_url: str, producer: FakeProducer) -> AsyncIterator[AsyncClient]:
    """A process with the role of the relay."""
    configuration = Configuration(
        Settings(service_name="shop", _env_file=None),
        settings_for("127.0.0.1:9", "shop"),  # nobody talks to it: the producer is a fake
        database_settings(database_url),
    )
    app = create_app({Role.RELAY}, configuration, producer)
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://relay") as http,
    ):
        yield http


async def has_said(http: AsyncClient, words: str) -> None:
    """Wait until the readiness of the relay says that."""
    said = await eventually(
        lambda: http.get("/health/ready"), lambda a: words in a.json()["checks"]["relay"], 20
    )
    if words != "ok":
        assert said.status_code == 503


async def test_a_relay_without_a_broker_is_not_ready_until_there_is_one(
    world: World, migrated_database_url: str
) -> None:
    producer = FakeProducer()
    producer.available = False
    await world.write(*moved(1))
    async with serving(migrated_database_url, producer) as http:
        await has_said(http, "the fake broker is away")
        assert (await http.get("/health/live")).json()["checks"]["relay"] == "ok"
        producer.available = True
        await has_said(http, "ok")


async def test_a_relay_is_not_ready_while_events_wait_too_long(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_MAX_LAG_SECONDS", "0.001")
    await world.write(*moved(1))
    async with world.database.engine.begin() as connection:
        await store.waiting_buckets(connection)
    async with world.database.engine.begin() as connection:
        # Somebody else has the bucket.
        await connection.execute(text("SELECT FROM outbox_buckets FOR UPDATE"))
        async with serving(migrated_database_url, FakeProducer()) as http:
            await has_said(http, "the oldest event has waited")
            await connection.rollback()
            await has_said(http, "ok")
