"""The schema that `app dev` prepares."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Integer, Table, text

from app.platform.database.engine import Base, Database
from app.platform.database.migrations import newest_of_branch, upgrade
from app.platform.dev.schema import SchemaTooNew, prepare_schema
from tests.fixtures import database_settings, temporary_database


@pytest.fixture
def url(database_server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        monkeypatch.setenv("DATABASE_URL", url)
        yield url


async def execute(url: str, statement: str) -> None:
    database = Database(database_settings(url))
    async with database.engine.begin() as connection:
        await connection.execute(text(statement))
    await database.close()


async def test_models_with_migrations_are_not_mentioned(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await prepare_schema()
    assert capsys.readouterr() == ("", "")


async def test_a_model_without_a_migration_is_reported(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [Table(f"new_{n}", Base.metadata, Column("id", Integer)) for n in range(7)]
    try:
        await prepare_schema()
    finally:
        for table in tables:
            Base.metadata.remove(table)
    printed = "".join(capsys.readouterr())
    assert "models without a migration: add table new_0, add table new_1" in printed
    assert "add table new_4 and 2 more" in printed
    assert "`uv run app db revision" in printed


async def test_a_database_newer_than_the_code_offers_two_ways_back(url: str) -> None:
    await upgrade(url)
    head = newest_of_branch("core_0099")
    newer = f"UPDATE alembic_version SET version_num = 'core_0099' WHERE version_num = '{head}'"
    await execute(url, newer)
    with pytest.raises(SchemaTooNew) as refusal:
        await prepare_schema()
    assert "core_0099, which this code does not have" in str(refusal.value)
    assert f"`uv run app db downgrade {head}`" in str(refusal.value)
    assert "`uv run app dev --fresh`" in str(refusal.value)


def test_the_newest_revision_of_a_branch_is_found_by_name() -> None:
    assert newest_of_branch("core_0099").startswith("core_")
    assert newest_of_branch("switched_off_0001") == "base"
