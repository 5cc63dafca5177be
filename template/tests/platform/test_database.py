"""Migrations on a real database, a service without them, and the messages of errors."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Iterator

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, Table, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app import wiring
from app.platform.database import migrations as migrate
from app.platform.database.engine import Base, Connector, Database, Probe
from app.platform.database.errors import summary
from app.platform.database.migrations import (
    MigrationsPending,
    SchemaCheck,
    SchemaStatus,
    UnknownTarget,
    alembic_config,
    downgrade,
    read_status,
    upgrade,
)
from app.platform.database.revisions import RevisionError, find_changes
from app.platform.database.url import async_url
from tests.fixtures import temporary_database
from tests.world import run_cli, serving


@pytest.fixture
def empty_database_url(database_server_url: str) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        yield url


async def tables(url: str) -> set[str]:
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await engine.dispose()
    return set(names)


async def test_migrations_and_models_agree(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    assert await find_changes(empty_database_url) == []


async def test_models_and_tables_that_differ_are_listed(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    table = Table("reviews", Base.metadata, Column("id", Integer, primary_key=True))
    engine = create_async_engine(async_url(empty_database_url), poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE inbox ADD COLUMN extra integer"))
            await connection.execute(text("ALTER TABLE inbox ALTER consumer TYPE text"))
            await connection.execute(text("CREATE TABLE inbox_shadow (LIKE inbox)"))
        assert sorted(await find_changes(empty_database_url)) == [
            "add table reviews",
            "modify type inbox.consumer",
            "remove column inbox.extra",
        ], "not those of a rebuild's shadow table"
    finally:
        Base.metadata.remove(table)
        await engine.dispose()


async def test_changes_are_not_searched_for_in_an_old_database(empty_database_url: str) -> None:
    with pytest.raises(RevisionError, match="not up to date"):
        await find_changes(empty_database_url)


async def test_every_table_of_the_service_is_made(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    assert await tables(empty_database_url) == {*Base.metadata.tables, "alembic_version"}


async def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await upgrade(empty_database_url)


async def test_simultaneous_upgrades_run_one_after_the_other(empty_database_url: str) -> None:
    await asyncio.gather(*(upgrade(empty_database_url) for _ in range(4)))
    assert "inbox" in await tables(empty_database_url)


async def test_behind_a_pooler_migrations_keep_no_prepared_statement(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    run_migrations = migrate._upgrade

    def looking(connection: Connection, config: Config) -> None:
        run_migrations(connection, config)
        kept.extend(connection.scalars(text("SELECT name FROM pg_prepared_statements")))

    monkeypatch.setattr(migrate, "_upgrade", looking)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("DATABASE_POOLER", "true")
    assert (await run_cli("db", "upgrade")).exit_code == 0
    assert "inbox" in await tables(empty_database_url)
    assert [name for name in kept if name] == []


async def test_a_downgrade_leaves_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await downgrade(empty_database_url, "base")
    assert await tables(empty_database_url) == {"alembic_version"}
    with pytest.raises(UnknownTarget, match="cannot downgrade to nowhere"):
        await downgrade(empty_database_url, "nowhere")


async def test_each_module_is_a_branch_of_its_own(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    engine = create_async_engine(async_url(empty_database_url), poolclass=NullPool)
    async with engine.connect() as connection:
        heads = await connection.scalars(text("SELECT version_num FROM alembic_version"))
    await engine.dispose()
    branches = [branch(head) for head in heads]
    assert "core" in branches
    assert len({*branches}) == len(branches)


def heads() -> list[str]:
    return list(ScriptDirectory.from_config(alembic_config()).get_heads())


def branch(revision: str) -> str:
    script = ScriptDirectory.from_config(alembic_config()).get_revision(revision)
    (label,) = script.branch_labels
    return str(label)


@pytest.fixture
async def engine(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(empty_database_url), poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture
def probe(empty_database_url: str) -> Iterator[Probe]:
    probe = Probe(Connector(empty_database_url, 5.0, None, pooler=False))
    yield probe
    probe.close()


async def test_an_empty_database_lacks_every_migration(probe: Probe) -> None:
    with pytest.raises(MigrationsPending, match="app db upgrade") as refused:
        await SchemaCheck(probe).check()
    for head in heads():
        assert head in str(refused.value)


async def test_a_missing_migration_is_named(probe: Probe, empty_database_url: str) -> None:
    for head in heads():
        await upgrade(empty_database_url)
        await downgrade(empty_database_url, f"{branch(head)}@-1")
        with pytest.raises(MigrationsPending, match=f"migration {head} is missing"):
            await SchemaCheck(probe).check()
    await upgrade(empty_database_url)
    await SchemaCheck(probe).check()


async def test_a_newer_database_is_accepted(
    engine: AsyncEngine, probe: Probe, empty_database_url: str
) -> None:
    await upgrade(empty_database_url)
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE alembic_version SET version_num = 'later' WHERE version_num = :head"),
            {"head": heads()[0]},
        )
    await SchemaCheck(probe).check()
    assert await read_status(empty_database_url) == SchemaStatus(pending=[], unknown=["later"])


async def test_a_complete_schema_is_checked_once(
    probe: Probe, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade(empty_database_url)
    schema = SchemaCheck(probe)
    await schema.check()
    monkeypatch.delattr(Probe, "fetch")
    await schema.check()


async def test_a_service_is_not_ready_until_its_migrations_have_run(
    empty_database_url: str,
) -> None:
    async with serving(empty_database_url) as api:
        ready = await api.http.get("/health/ready")
        await upgrade(empty_database_url)
        ready_now = await api.http.get("/health/ready")
    assert ready.status_code == 503
    assert "app db upgrade" in ready.json()["checks"]["schema"]
    assert ready_now.json()["checks"]["schema"] == "ok"


@pytest.mark.skipif(wiring.service.first_request is None, reason="no slice has a first request")
async def test_a_request_without_migrations_gets_503(empty_database_url: str) -> None:
    path, body = wiring.service.first_request or ("", "")
    json = {"content-type": "application/json"}
    async with serving(empty_database_url) as api:
        refused = await api.http.post(path, content=body, headers=json)
        await upgrade(empty_database_url)
        taken = await api.http.post(path, content=body, headers=json)
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:problem-type:database-out-of-date"
    assert taken.status_code == 201


async def test_errors_do_not_show_written_values(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE people (email text PRIMARY KEY)"))
        person, ada = text("INSERT INTO people VALUES (:email)"), {"email": "ada@example.com"}
        await connection.execute(person, ada)
        with pytest.raises(IntegrityError) as refused:
            await connection.execute(person, ada)
    said = 'duplicate key value violates unique constraint "people_pkey"'
    assert summary(refused.value) == f"IntegrityError: {said}"
    shown = "".join(traceback.format_exception(refused.value))
    assert said in shown
    assert "ada@example.com" not in shown


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "SELECT CAST(CAST(:value AS text) AS integer)",
            "data exception (InvalidTextRepresentationError, SQLSTATE 22P02)",
        ),
        (
            "SELECT CAST(:value AS uuid)",
            "invalid input for query argument $1 (DataError, SQLSTATE 22000)",
        ),
    ],
    ids=["refused by the server", "refused by the driver"],
)
async def test_errors_do_not_show_invalid_values(
    database: Database, statement: str, said: str
) -> None:
    ada = {"value": "ada@example.com"}
    async with database.engine.connect() as connection:
        with pytest.raises(DBAPIError) as refused:
            await connection.execute(text(statement), ada)
    assert summary(refused.value) == f"DBAPIError: {said}"
    shown = "".join(traceback.format_exception(refused.value))
    assert said in shown
    assert "ada@example.com" not in shown
