"""The transactions of relays end with their block, whatever happens in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.background import WakeUp
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.errors import DatabaseUnavailable, is_unavailable
from app.platform.outbox import store
from app.platform.outbox.model import bucket_of
from app.platform.outbox.transaction import transaction
from app.platform.outbox.wakeup import listening, notifying
from tests.fixtures import eventually
from tests.platform.outbox.conftest import MOVED, World, moved, outbox_settings

# What another session locks, so that the relay's BEGIN, its reading or its COMMIT has to wait.
BLOCKERS = {
    "begin": "LOCK TABLE outbox_buckets",
    "read": "LOCK TABLE outbox",
    "commit": "SELECT FROM outbox FOR UPDATE",
}
OTHERS = (
    "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
CUT = text(
    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}"
    " AND wait_event_type = 'Lock'"
)
OPEN = text(f"SELECT count(*) FROM pg_stat_activity WHERE {OTHERS} AND xact_start IS NOT NULL")


@pytest.fixture
async def world(database: Database) -> World:
    return World(database)


@asynccontextmanager
async def opened(url: str, **settings: object) -> AsyncIterator[Database]:
    values = {"database_url": SecretStr(url), **settings}
    database = Database(DatabaseSettings(_env_file=None, **values))  # type: ignore[arg-type]  # the values are the tests'
    try:
        yield database
    finally:
        await database.close()


async def ask(database: Database, question: TextClause) -> int:
    # In a transaction of its own: within one, the server shows the activity of its first look.
    async with database.engine.begin() as connection:
        return int(await connection.scalar(question) or 0)


async def relay_one(engine: AsyncEngine, bucket: int, statement_seconds: float) -> None:
    async with transaction(engine, statement_seconds, 60, [bucket]) as relayed:
        found = await relayed.oldest_rows(10, 1_000_000)
        relayed.delete([row.id for row in found.rows])


@pytest.mark.parametrize("end", ["cancelled", "statement_timeout", "cut"])
@pytest.mark.parametrize("blocked", BLOCKERS)
async def test_no_connection_returns_inside_a_transaction(
    world: World, database: Database, migrated_database_url: str, blocked: str, end: str
) -> None:
    await world.write(*moved(1))
    async with database.engine.begin() as connection:
        (bucket,) = await store.waiting_buckets(connection)
    seconds = 0.3 if end == "statement_timeout" else 60.0

    async with opened(migrated_database_url, database_pool_size=1) as own:
        async with database.engine.begin() as blocker:
            await blocker.execute(text(BLOCKERS[blocked]))
            relaying = asyncio.create_task(relay_one(own.engine, bucket, seconds))
            if end == "cut":
                await eventually(lambda: ask(database, CUT))
            elif end == "cancelled":
                await asyncio.sleep(0.3)
                relaying.cancel()
            (error,) = await asyncio.gather(relaying, return_exceptions=True)
        assert isinstance(error, BaseException)
        assert isinstance(error, asyncio.CancelledError) or is_unavailable(error), repr(error)
        await eventually(lambda: ask(database, OPEN), lambda count: count == 0)
        assert len(await world.rows()) == 1
        await relay_one(own.engine, bucket, 60)  # with the only connection of the pool
    assert await world.rows() == []


async def test_a_statement_without_an_answer_is_an_outage(
    world: World, database: Database, migrated_database_url: str
) -> None:
    await world.write(*moved(1))
    async with (
        opened(migrated_database_url, database_command_timeout_seconds=0.3) as own,
        database.engine.begin() as blocker,
    ):
        await blocker.execute(text(BLOCKERS["begin"]))
        with pytest.raises(DatabaseUnavailable, match="did not answer a statement in time"):
            await relay_one(own.engine, bucket_of(MOVED, b"key-0", 32), 60)


async def test_behind_a_pooler_statements_are_prepared_in_transactions(
    database: Database, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler keeps to one connection from BEGIN to COMMIT, and not from one message to the next."""
    inside, outside = list[str](), list[str]()
    prepare = asyncpg.Connection._get_statement

    async def noting(
        self: asyncpg.Connection, query: str, *args: object, **options: object
    ) -> object:
        (inside if self.is_in_transaction() else outside).append(query)
        return await prepare(self, query, *args, **options)

    heard, writers = WakeUp(), WakeUp()
    async with (
        listening(database.engine, heard),  # not through the pooler, as it says
        opened(migrated_database_url, database_pooler=True) as behind,
    ):
        await eventually(lambda: asyncio.sleep(0, heard.is_set()))
        heard.take()
        monkeypatch.setattr(asyncpg.Connection, "_get_statement", noting)
        world = World(behind, settings=outbox_settings(), published=writers)
        async with notifying(behind.engine, writers):
            await world.write(*moved(20))
            await eventually(lambda: asyncio.sleep(0, heard.is_set()))
        async with world.relaying():
            await world.is_empty()
    assert inside
    assert outside == []
