"""The statements of a request, each of which is a round trip: none is added unnoticed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from app import wiring
from app.platform.config import HttpSettings, Settings
from app.platform.database.engine import Database
from app.platform.http.app import create_app
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.runtime import Configuration
from app.platform.service import Role
from tests.fixtures import database_settings, settings_for

pytestmark = pytest.mark.skipif(find_spec("app.orders") is None, reason="no sample domain")

OUTBOX, READ_SIDE, STREAMS = (
    find_spec(f"app.platform.{name}") is not None
    for name in ("outbox", "projections", "event_store")
)
# Without BEGIN and COMMIT: the user and the new id, then what is stored, then the event.
STORED = 1 + (0 if READ_SIDE else 2) if STREAMS else 2
PLACING = 1 + STORED + 1


@contextmanager
def counted(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect the statements of this task: work in the background, such as clean-ups, has its own."""
    statements: list[str] = []
    task = asyncio.current_task()

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if asyncio.current_task() is task:
            statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    yield statements
    event.remove(engine.sync_engine, "before_cursor_execute", count)


async def test_a_request_has_no_more_statements_than_it_needs(
    database: Database, migrated_database_url: str
) -> None:
    configuration = Configuration(
        Settings(service_name="api", _env_file=None),
        settings_for("127.0.0.1:9", "api"),
        database_settings(migrated_database_url),
        HttpSettings(_env_file=None),
    )
    app = create_app(wiring.service, {Role.API}, configuration, FakeProducer())
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://api") as http,
    ):
        engine = app.state.runtime.database.engine

        async def statements(method: str, path: str, status: int, **options: object) -> int:
            with counted(engine) as found:
                answer = await http.request(method, path, **options)  # type: ignore[arg-type]
            assert answer.status_code == status, answer.text
            return len([each for each in found if "projection" not in each])

        user = {"email": "ada@example.com", "username": "ada"}
        await statements("POST", "/users", 201, json=user)
        items = [{"sku": f"tea-{n}", "quantity": 1, "unit_price": "3.50"} for n in range(3)]
        order = {"user_id": 1, "items": items}
        key = {"Idempotency-Key": "first"}
        assert {
            "post": await statements("POST", "/orders", 201, json=order),
            "with a key": await statements("POST", "/orders", 201, json=order, headers=key),
            "again": await statements("POST", "/orders", 201, json=order, headers=key),
            "get": await statements("GET", "/orders/1", 404 if READ_SIDE else 200),
            "list": await statements("GET", "/orders", 200),
        } == {
            "post": PLACING,
            "with a key": PLACING + 2,
            "again": 2,
            "get": 1,
            "list": 1,
        }
