"""The HTTP API on a real database, with a fake producer that shows what was published."""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text

from app import wiring
from app.config import Settings
from app.database import Database
from app.kafka import publisher
from app.kafka.producer import FakeProducer
from app.main import create_app
from app.runtime import Configuration, Role
from tests.fixtures.service import database_settings, settings_for


@dataclass
class Api:
    http: AsyncClient
    producer: FakeProducer

    def published(self, event_type: str) -> list[dict[str, Any]]:
        return [
            json.loads(message.value or b"") for message in self.producer.on(f"api.{event_type}")
        ]


@asynccontextmanager
async def serving(database_url: str) -> AsyncIterator[Api]:
    producer = FakeProducer()
    configuration = Configuration(
        Settings(service_name="api", _env_file=None),
        settings_for("127.0.0.1:9", "api"),  # nobody talks to it: the producer is a fake
        database_settings(database_url),
    )
    app = create_app({Role.API}, configuration, producer)
    transport = ASGITransport(app, raise_app_exceptions=False)
    with pytest.MonkeyPatch.context() as patch:
        # Sent before the answer comes, whatever the service publishes through: so one can look.
        patch.setattr(wiring, "bind_publisher", publisher.bind)
        async with (
            app.router.lifespan_context(app),
            AsyncClient(transport=transport, base_url="http://api") as http,
        ):
            yield Api(http, producer)


@pytest.fixture
async def api(database: Database, migrated_database_url: str) -> AsyncIterator[Api]:
    async with serving(migrated_database_url) as api:
        yield api


@asynccontextmanager
async def _failing(database: Database, sqlstate: str, timing: str) -> AsyncIterator[None]:
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" RAISE EXCEPTION 'a secret of the database' USING ERRCODE = '{sqlstate}'; END $$"
            )
        )
        await connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON users"
                f" DEFERRABLE INITIALLY {timing} FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    try:
        yield
    finally:
        async with database.engine.begin() as connection:
            await connection.execute(text("DROP FUNCTION refuse CASCADE"))


def failing_commit(database: Database, sqlstate: str) -> AbstractAsyncContextManager[None]:
    """Transactions that insert a user fail when they commit."""
    return _failing(database, sqlstate, "DEFERRED")


def failing_insert(database: Database, sqlstate: str) -> AbstractAsyncContextManager[None]:
    """Inserting a user fails."""
    return _failing(database, sqlstate, "IMMEDIATE")
