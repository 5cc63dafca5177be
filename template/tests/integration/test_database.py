"""Migrations on a real database."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.database import Base, async_url
from app.migrate import configuration, upgrade
from tests.fixtures.servers import temporary_database


@pytest.fixture
def empty_database_url(database_server_url: str) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        yield url


async def alembic(url: str, step: Callable[[Config], None]) -> None:
    def run(connection: Connection) -> None:
        config = configuration()
        config.attributes["connection"] = connection
        step(config)

    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


async def tables(url: str) -> set[str]:
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await engine.dispose()
    return set(names)


async def test_the_migrations_make_what_the_models_say(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await alembic(empty_database_url, command.check)


async def test_every_table_of_the_service_is_made(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    assert await tables(empty_database_url) == {*Base.metadata.tables, "alembic_version"}


async def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await upgrade(empty_database_url)


async def test_processes_that_upgrade_at_once_take_turns(empty_database_url: str) -> None:
    await asyncio.gather(*(upgrade(empty_database_url) for _ in range(4)))
    assert "inbox" in await tables(empty_database_url)


async def test_the_way_back_leaves_nothing(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    await alembic(empty_database_url, lambda config: command.downgrade(config, "base"))
    assert await tables(empty_database_url) == {"alembic_version"}


async def test_each_module_is_a_branch_of_its_own(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    engine = create_async_engine(async_url(empty_database_url), poolclass=NullPool)
    async with engine.connect() as connection:
        heads = await connection.scalars(text("SELECT version_num FROM alembic_version"))
    await engine.dispose()
    script = ScriptDirectory.from_config(configuration())
    branches = [sorted(script.get_revision(head).branch_labels) for head in heads]
    assert all(len(labels) == 1 for labels in branches), branches
    assert ["core"] in branches
