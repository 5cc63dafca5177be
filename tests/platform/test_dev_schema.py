"""The schema and the topics that `app dev` prepares."""

from collections.abc import Sequence

import pytest
from samples import MeterRead, execute
from sqlalchemy import Column, Integer, Table

from app.platform.database.engine import Base
from app.platform.database.migrations import newest_of_branch, upgrade
from app.platform.dev import application
from app.platform.dev.schema import SchemaTooNew, prepare_schema
from app.platform.events.event import EventType
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import Topic
from app.platform.service import Component, Service


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


async def test_foreign_topics_are_created_on_its_own_broker_only(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []

    async def provision(_settings: KafkaSettings, topics: Sequence[Topic]) -> list[str]:
        created.extend(topic.name for topic in topics)
        return []

    monkeypatch.setattr(application, "provision", provision)
    service = Service([Component("bills", events=[EventType(MeterRead, service="billing")])])
    await application.prepare(service, own_broker=False)
    assert created == []
    await application.prepare(service, own_broker=True)
    assert created == ["billing.meter.read"]
