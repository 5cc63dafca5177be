"""The checks of `app doctor`."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from aiokafka.errors import KafkaError
from asyncpg import PostgresError
from pydantic_settings import SettingsConfigDict
from sqlalchemy.exc import SQLAlchemyError

from app.platform import config
from app.platform.cli.base import advice, load, on_database, require_development
from app.platform.cli.topics import compare_topics
from app.platform.config import (
    ConfigurationError,
    EnvSettings,
    HttpSettings,
    Settings,
    TelemetrySettings,
)
from app.platform.database import migrations, revisions
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.errors import DatabaseReadOnly, DatabaseUnavailable, error_message
from app.platform.database.url import parse_database_url
from app.platform.kafka.admin import State, TopicState
from app.platform.kafka.errors import MessagingError
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import missing_foreign
from app.platform.runtime import Context
from app.platform.service import Service

ANSWERS_FILE = Path(".copier-answers.yml")
_DATABASE_ERRORS = (DatabaseUnavailable, DatabaseReadOnly, PostgresError, SQLAlchemyError, OSError)


class Level(StrEnum):
    """The weight of a finding."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """A line of the doctor: what was found, and what to do about it."""

    level: Level
    subject: str
    text: str


class _EnvFile(EnvSettings):
    """All names in `.env`."""

    model_config = SettingsConfigDict(extra="allow")


def examine(service: Service) -> Iterator[Finding]:
    """Check one thing after the other."""
    kinds: list[type[EnvSettings]] = [
        Settings,
        HttpSettings,
        DatabaseSettings,
        KafkaSettings,
        TelemetrySettings,
        *service.settings,
        _EnvFile,
    ]
    settings = list(_check_settings(kinds))
    yield from settings
    if any(finding.level is Level.ERROR for finding in settings):
        return  # without settings, nothing else can be asked
    yield from _check_database()
    yield from _check_kafka(service)
    yield from _check_template()


def _check_settings(kinds: Iterable[type[EnvSettings]]) -> Iterator[Finding]:
    names: set[str] = set()
    problems: set[Finding] = set()
    for kind in kinds:
        names |= {name.upper() for name in kind.model_fields}
        try:
            loaded = config.load(kind)
        except ConfigurationError as error:
            problems.add(Finding(Level.ERROR, "settings", str(error)))
        else:
            unknown = {name.upper() for name in loaded.model_extra or ()} - names
            problems |= {
                Finding(Level.WARNING, "settings", _no_setting(name, names))
                for name in unknown
                if not name.startswith("OTEL_")  # its SDK has many more
            }
    yield from sorted(problems)
    if not problems:
        yield Finding(Level.OK, "settings", "every name in .env and every value is valid")


def _no_setting(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, n=1)
    meant = f"did you mean {near[0]}?" if near else ".env.example lists the settings"
    return f".env sets {name}, which is no setting; {meant}"


def _check_database() -> Iterator[Finding]:
    settings = load(DatabaseSettings)
    url, pooler = settings.database_url.get_secret_value(), settings.database_pooler
    try:
        version = asyncio.run(on_database(_server_version))
    except _DATABASE_ERRORS as error:
        hint = advice(DatabaseSettings, "DATABASE_URL")
        yield Finding(Level.ERROR, "database", f"{error_message(error)}{hint}")
        return
    hosts = parse_database_url(url).hosts
    yield Finding(Level.OK, "database", f"PostgreSQL {version} at {hosts}")
    try:
        yield _check_migrations(url, pooler)
    except (*_DATABASE_ERRORS, ConfigurationError) as error:
        yield Finding(Level.ERROR, "migrations", f"not compared: {error_message(error)}")


def _check_migrations(url: str, pooler: bool) -> Finding:
    status = asyncio.run(migrations.read_status(url, pooler=pooler))
    if status.unknown:
        steps = ", ".join(
            f"`app db downgrade {migrations.newest_of_branch(name)}`" for name in status.unknown
        )
        text = f"{', '.join(status.unknown)} in the database is not in this code; deploy the"
        return Finding(
            Level.WARNING, "migrations", f"{text} newer code, or revert with it: {steps}"
        )
    if status.pending:
        pending = ", ".join(status.pending)
        return Finding(Level.ERROR, "migrations", f"{pending} not run; run `app db upgrade`")
    return _check_models(url, pooler)


async def _server_version(database: Database) -> str:
    await database.ping()
    ((version,),) = await database.probe.fetch("SHOW server_version")
    return str(version)


def _check_models(url: str, pooler: bool) -> Finding:
    if changes := asyncio.run(revisions.find_changes(url, pooler=pooler)):
        text = f"models without a migration: {', '.join(changes)}; write it with"
        return Finding(Level.WARNING, "migrations", f'{text} `app db revision "what changes"`')
    return Finding(Level.OK, "migrations", "all run, and the models match the tables")


def _check_kafka(service: Service) -> Iterator[Finding]:
    settings = load(KafkaSettings)
    try:
        context = Context.of(service, load(Settings).service_name, settings)
        states = asyncio.run(compare_topics(context))
    except ConfigurationError as error:
        yield Finding(Level.ERROR, "events", str(error))
        return
    except (MessagingError, KafkaError, OSError) as error:
        hint = advice(KafkaSettings, "KAFKA_BOOTSTRAP_SERVERS")
        yield Finding(Level.ERROR, "kafka", f"{error}{hint}")
        return
    yield Finding(Level.OK, "kafka", f"a broker at {settings.kafka_bootstrap_servers}")
    found = list(_judge_topics(states))
    yield from found or [
        Finding(Level.OK, "topics", f"all {len(states)} as the service needs them")
    ]


def _judge_topics(states: Iterable[TopicState]) -> Iterator[Finding]:
    remedies = {
        State.MISSING: (Level.ERROR, "is missing; run `app topics create`"),
        State.HIDDEN: (Level.ERROR, "is hidden from this user; grant it DESCRIBE"),
        State.DIFFERENT: (Level.WARNING, "differs; change it on the broker, or the settings"),
    }
    for found in states:
        name, owner = found.topic.name, found.topic.owner
        if owner is not None and found.state is State.MISSING:
            yield Finding(Level.ERROR, "topics", missing_foreign(name, owner))
        elif found.is_wrong:
            level, remedy = remedies[found.state]
            detail = f" ({found.detail})" if found.detail else ""
            yield Finding(level, "topics", f"{name} {remedy}{detail}")


def _check_template() -> Iterator[Finding]:
    try:
        require_development("app doctor")
    except ConfigurationError:
        return  # in an image there is no template to compare with
    from app.platform.dev.changes import TemplateUnavailable, find_changes

    try:
        changed = find_changes(Path.cwd())
        answers = ANSWERS_FILE.read_text(encoding="utf-8")
    except (OSError, TemplateUnavailable) as error:
        yield Finding(Level.WARNING, "template", f"not compared: {error}")
        return
    version = re.search(r"^_commit: '?(.+?)'?$", answers, re.MULTILINE)
    shown = version[1] if version else "of an unknown version"
    yield Finding(Level.OK, "template", f"{shown}; `copier check-update` looks for a newer one")
    for path, change in changed.items():
        text = f"{path.as_posix()} is {change.value}; an update may conflict there"
        yield Finding(Level.WARNING, "platform", text)
    if not changed:
        yield Finding(Level.OK, "platform", "app/platform is as the template made it")
