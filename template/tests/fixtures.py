"""Servers for tests, and the service on them.

The servers are embedded ones, or those that DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name. There are
two ways to use them. `client` is one running service (API and consumers) for the whole session:
tests over HTTP use data of their own. `database` and `kafka_settings` give a test a database that
is emptied before it, and topics and groups that no other test has.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import SecretStr
from sqlalchemy import text

from app import SERVICE_NAME, wiring
from app.platform.config import HttpSettings, Settings
from app.platform.database.engine import Base, Database, DatabaseSettings
from app.platform.database.migrations import upgrade
from app.platform.database.url import async_url, parse_database_url
from app.platform.dev.folders import FileLock
from app.platform.dev.servers import BrokerChoice, Servers
from app.platform.http.app import create_app
from app.platform.kafka.admin import provision
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Configuration, Context
from app.platform.service import Role, Service

T = TypeVar("T")


async def eventually(
    probe: Callable[[], Awaitable[T]], until: Callable[[T], bool] = bool, seconds: float = 15.0
) -> T:
    """Call `probe` until its answer satisfies `until`; return that answer.

    Raises AssertionError with the last answer when that takes longer than `seconds`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        answer = await probe()
        if until(answer):
            return answer
        assert loop.time() < deadline, f"not within {seconds:g} s; the last answer was {answer!r}"
        await asyncio.sleep(0.05)


# Servers

_PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def servers_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of this session's own, so that sessions and xdist workers can run side by side.

    Folders are used again: so the servers of a session that was killed are found and stopped. Those
    of a project that is read-only are beside pytest's temporary folders.
    """
    temporary = tmp_path_factory.getbasetemp().parent / f"{SERVICE_NAME}-servers"
    folders = _PROJECT / ".dev" / "tests" if os.access(_PROJECT, os.W_OK) else temporary
    for number in count():
        folder = folders / str(number)
        lock = FileLock(folder / "session.lock")
        if lock.acquire():
            break
    yield folder
    lock.release()


@pytest.fixture(scope="session")
def servers(servers_folder: Path) -> Iterator[Servers]:
    """PostgreSQL and Kafka, fresh, started once a session."""
    broker: BrokerChoice = "mock" if os.environ.get("TEST_BROKER") == "mock" else "kafka"
    with Servers(servers_folder, broker, fresh=True, fsync=False) as servers:
        yield servers


@pytest.fixture(scope="session")
def database_server_url(servers: Servers) -> str:
    return servers.database_url


@pytest.fixture(scope="session")
def kafka_bootstrap_servers(servers: Servers) -> str:
    return servers.kafka_bootstrap_servers


@pytest.fixture(scope="session")
def real_kafka(servers: Servers) -> str:
    """Bootstrap servers of a real broker, for what the mock broker cannot do."""
    if servers.broker_kind == "mock":
        reason = f"needs Apache Kafka, and there is only the mock broker: {servers.mock_reason}"
        if os.environ.get("REQUIRE_REAL_SERVERS") == "1":
            pytest.fail(f"{reason} (REQUIRE_REAL_SERVERS=1 forbids to skip this)", pytrace=False)
        pytest.skip(reason)
    return servers.kafka_bootstrap_servers


@pytest.fixture(scope="session")
def session_database_url(database_server_url: str) -> Iterator[str]:
    """An empty database of this session's own, dropped at its end."""
    with temporary_database(database_server_url) as url:
        yield url


@contextmanager
def temporary_database(server_url: str) -> Iterator[str]:
    """An empty database on the server, for the length of the block; its URL."""
    name = f"test_{secrets.token_hex(6)}"  # not `random`, which test runners seed alike
    _execute(server_url, f'CREATE DATABASE "{name}"')
    try:
        url = async_url(server_url).set(drivername="postgresql", database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        _execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _execute(server_url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(parse_database_url(server_url).dsns[0])
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    # A thread of its own, because the test session's event loop may be running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


# The service


def unique_service_name() -> str:
    """The first part of topics that no other test and no other session has."""
    return f"test-{secrets.token_hex(5)}"


def with_own_topics(service: Service, name: str) -> Service:
    """The service, with foreign topics that no other test has, either."""
    return Service(
        replace(
            part,
            events=[
                replace(entry, service=f"{name}-{entry.service}") if entry.service else entry
                for entry in part.events
            ],
        )
        for part in service.components
    )


def database_settings(url: str) -> DatabaseSettings:
    return DatabaseSettings(database_url=SecretStr(url), _env_file=None)


def settings_for(bootstrap_servers: str, service_name: str) -> KafkaSettings:
    """Kafka settings of a service with that name, with waits that suit tests."""
    return KafkaSettings(
        kafka_bootstrap_servers=bootstrap_servers,
        kafka_client_id=service_name,
        kafka_group_id=service_name,
        kafka_session_timeout_seconds=6,
        kafka_drain_timeout_seconds=5,
        _env_file=None,
    )


# One service for the whole session


@pytest.fixture(scope="session")
def live_database_url(database_server_url: str) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        yield url


@pytest.fixture(scope="session")
async def live_app(live_database_url: str, kafka_bootstrap_servers: str) -> AsyncIterator[FastAPI]:
    """The service with all its roles, running."""
    name = unique_service_name()
    configuration = Configuration(
        Settings(service_name=name, _env_file=None),
        settings_for(kafka_bootstrap_servers, name),
        database_settings(live_database_url),
        HttpSettings(_env_file=None),
    )
    service = with_own_topics(wiring.service, name)
    context = Context.of(service, name, configuration.kafka)
    topics = [*context.topics(), *context.foreign_topics()]
    await asyncio.gather(upgrade(live_database_url), provision(configuration.kafka, topics))
    app = create_app(service, set(Role), configuration)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture(scope="session")
async def client(live_app: FastAPI) -> AsyncIterator[AsyncClient]:
    """HTTP to the running service, once it is ready."""
    transport = ASGITransport(live_app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://service") as http:
        await eventually(lambda: failing_checks(http), lambda failing: failing == {}, seconds=30)
        yield http


async def failing_checks(http: AsyncClient) -> dict[str, str]:
    """The readiness checks that fail, each with its reason."""
    answer = await http.get("/health/ready")
    if answer.status_code == 200:
        return {}
    checks: dict[str, str] = answer.json()["checks"]
    return {name: result for name, result in checks.items() if result != "ok"}


# Parts of the service, a test at a time


@pytest.fixture(scope="session")
async def migrated_database_url(session_database_url: str) -> str:
    await upgrade(session_database_url)
    return session_database_url


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """A migrated database, emptied before the test: whatever ran before, and however it ended."""
    database = Database(database_settings(migrated_database_url))
    tables = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
    async with database.engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    yield database
    await database.close()


@pytest.fixture
def kafka_settings(kafka_bootstrap_servers: str) -> KafkaSettings:
    """Settings with a group and a client id of the test's own."""
    return settings_for(kafka_bootstrap_servers, unique_service_name())


@pytest.fixture
async def producer(kafka_settings: KafkaSettings) -> AsyncIterator[KafkaProducer]:
    async with KafkaProducer(kafka_settings).running() as producer:
        yield producer
