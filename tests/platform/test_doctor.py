"""The checks of `app doctor`."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from samples import execute
from sqlalchemy import Column, Integer, Table
from typer.testing import CliRunner

from app.platform.cli import checks, command_line
from app.platform.cli.checks import Finding, Level
from app.platform.config import ConfigurationError
from app.platform.database.engine import Base
from app.platform.database.migrations import newest_of_branch, upgrade
from app.platform.dev import changes
from app.platform.dev.changes import Change, TemplateUnavailable
from app.platform.kafka.admin import State, TopicState
from app.platform.kafka.topics import Topic, missing_foreign
from app.platform.service import Service

NOWHERE = "postgresql://postgres@127.0.0.1:9/postgres"
SERVICE = Service([])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    return tmp_path


def doctor() -> tuple[int, str]:
    result = CliRunner().invoke(command_line(lambda: SERVICE), ["doctor"], catch_exceptions=False)
    return result.exit_code, result.output


def of(subject: str) -> list[Finding]:
    return [found for found in checks.examine(SERVICE) if found.subject == subject]


def test_an_unknown_name_in_env_is_a_warning_with_the_nearest(folder: Path) -> None:
    (folder / ".env").write_text("LOG_LEVLE=DEBUG\nlog_format=json\nXYZ=1\n")
    assert of("settings") == [
        Finding(
            Level.WARNING,
            "settings",
            ".env sets LOG_LEVLE, which is no setting; did you mean LOG_LEVEL?",
        ),
        Finding(
            Level.WARNING,
            "settings",
            ".env sets XYZ, which is no setting; .env.example lists the settings",
        ),
    ]


def test_a_wrong_value_is_an_error_and_ends_the_checks(folder: Path) -> None:
    (folder / ".env").write_text("LOG_LEVEL=LOUD\n")
    code, output = doctor()
    assert code == 1
    assert output.startswith("error    settings   wrong configuration: LOG_LEVEL: ")
    assert output.endswith("1 error, 0 warnings\n")


def test_an_env_file_in_another_encoding_is_one_error(folder: Path) -> None:
    (folder / ".env").write_bytes(b"SERVICE_NAME=caf\xe9\n")
    (finding,) = of("settings")
    assert finding.level is Level.ERROR
    assert ".env is not UTF-8" in finding.text


def test_servers_that_do_not_answer_are_errors() -> None:
    code, output = doctor()
    assert code == 1
    assert "ok       settings" in output
    assert "error    database   cannot connect to PostgreSQL at 127.0.0.1" in output
    assert "error    kafka      cannot connect to Kafka: 127.0.0.1:9" in output
    assert "2 errors" in output


def test_pending_migrations_are_an_error_with_the_command(url: str) -> None:
    (finding,) = of("migrations")
    assert finding.level is Level.ERROR
    assert finding.text.endswith("; run `app db upgrade`")


def test_a_complete_schema_is_ok(url: str) -> None:
    asyncio.run(upgrade(url))
    assert [found.level for found in of("database") + of("migrations")] == [Level.OK, Level.OK]


def test_models_without_a_migration_are_a_warning(url: str) -> None:
    asyncio.run(upgrade(url))
    table = Table("reviews", Base.metadata, Column("id", Integer))
    try:
        (finding,) = of("migrations")
    finally:
        Base.metadata.remove(table)
    assert finding.level is Level.WARNING
    assert "add table reviews" in finding.text
    assert "`app db revision" in finding.text


def test_a_newer_database_is_a_warning_with_the_way_back(url: str) -> None:
    asyncio.run(upgrade(url))
    head = newest_of_branch("core_0099")
    asyncio.run(
        execute(
            url,
            f"UPDATE alembic_version SET version_num = 'core_0099' WHERE version_num = '{head}'",
        )
    )
    (finding,) = of("migrations")
    assert finding.level is Level.WARNING
    assert f"`app db downgrade {head}`" in finding.text


def test_missing_and_different_topics_say_what_to_do() -> None:
    own, foreign = [
        [Topic(name, 3, 1, owner=owner) for name in "abc"] for owner in (None, "billing")
    ]
    states = [
        TopicState(own[0], State.PRESENT),
        TopicState(own[1], State.MISSING),
        TopicState(own[2], State.DIFFERENT, "partitions=1"),
        TopicState(foreign[1], State.MISSING),
        TopicState(foreign[2], State.DIFFERENT, "partitions=1"),
    ]
    assert [(found.level, found.text) for found in checks._judge_topics(states)] == [
        (Level.ERROR, "b is missing; run `app topics create`"),
        (Level.WARNING, "c differs; change it on the broker, or the settings (partitions=1)"),
        (Level.ERROR, missing_foreign("b", "billing")),
    ]


def test_edited_platform_files_are_warnings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".copier-answers.yml").write_text("_commit: '8487468'\n_src_path: /somewhere\n")

    def edited(_project: Path) -> Mapping[Path, Change]:
        return {Path("app/platform/health.py"): Change.EDITED}

    monkeypatch.setattr(changes, "find_changes", edited)
    assert of("template")[0].text.startswith("8487468; ")
    (finding,) = of("platform")
    assert finding.level is Level.WARNING
    assert finding.text.startswith("app/platform/health.py is edited")


def test_a_template_that_cannot_be_rendered_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".copier-answers.yml").write_text("_commit: 1.2.3\n")

    def unavailable(_project: Path) -> Mapping[Path, Change]:
        raise TemplateUnavailable("no network")

    monkeypatch.setattr(changes, "find_changes", unavailable)
    (finding,) = of("template")
    assert (finding.level, finding.text) == (Level.WARNING, "not compared: no network")


def test_a_service_without_its_answers_is_not_compared(folder: Path) -> None:
    (finding,) = of("template")
    assert finding.level is Level.WARNING
    assert finding.text.startswith("not compared: there is no .copier-answers.yml here")


def test_an_image_is_not_compared_with_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(command: str) -> None:
        raise ConfigurationError(f"`{command}` is for development")

    monkeypatch.setattr(checks, "require_development", missing)
    assert of("template") == []
