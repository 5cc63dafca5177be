"""The database's URL, its connections and their pool, on a real server."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.platform.config import ConfigurationError, load
from app.platform.database import migrations
from app.platform.database.engine import Connector, Database, DatabaseSettings, open_engine
from app.platform.database.errors import (
    ConnectionPoolEmpty,
    DatabaseReadOnly,
    DatabaseUnavailable,
    ErrorCategory,
    categorize,
    is_unavailable,
)
from app.platform.database.pool import pool_gauges
from app.platform.database.url import async_url, parse_database_url
from app.platform.health import CHECK_TIMEOUT_SECONDS, Health
from tests.fixtures import database_settings, temporary_database


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's variables and the project's .env out of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*DatabaseSettings.model_fields, "PGSSLROOTCERT"):
        monkeypatch.delenv(name.upper(), raising=False)


def text_of(url: str) -> str:
    return async_url(url).render_as_string(hide_password=False)


@pytest.mark.parametrize(
    "scheme",
    [
        "postgresql",
        "postgres",
        "postgresql+asyncpg",
        "postgresql+psycopg",
        "postgresql+psycopg2",
        "postgres+asyncpg",
    ],
)
def test_every_way_to_write_a_postgresql_url_is_taken(scheme: str) -> None:
    assert text_of(f"{scheme}://u:p@h:5433/db") == "postgresql+asyncpg://u:p@h:5433/db"


def test_a_password_with_escapes_keeps_them() -> None:
    url = async_url("postgresql://u:p%40ss%2Fw@h/db")

    assert url.password == "p@ss/w"
    assert url.host == "h"


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        ("postgresql://h/db?sslmode=require", "postgresql://h/db?sslmode=require"),
        (
            "postgresql+asyncpg://h/db?ssl=verify-ca&sslrootcert=ca.pem",
            "postgresql://h/db?sslmode=verify-ca&sslrootcert=ca.pem",
        ),
        ("postgres://u:p@h/db?sslrootcert=ca.pem", "postgresql://u:p@h/db?sslrootcert=ca.pem"),
    ],
)
async def test_parameters_of_libpq_are_left_to_asyncpg(
    monkeypatch: pytest.MonkeyPatch, given: str, handed_on: str
) -> None:
    Path("ca.pem").touch()
    asked: list[str] = []

    async def connect(url: str, **_options: Any) -> Any:
        asked.append(url)
        raise ConnectionRefusedError("not here")

    monkeypatch.setattr(asyncpg, "connect", connect)
    database = Database(DatabaseSettings(database_url=SecretStr(given), _env_file=None))
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    await database.close()

    assert asked == [handed_on]


@pytest.mark.parametrize(
    "url",
    ["mysql://h/db", "sqlite://", "http://h/db", "postgresq://h/db", "postgresql:/h", "h:5432", ""],
)
def test_another_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        async_url(url)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "postgresql://u:secret", "secret"])
def test_the_error_does_not_repeat_the_url(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql") as refused:
        async_url(url)

    assert "secret" not in str(refused.value)


ALL = "postgresql://u:p@h/db?"


@pytest.mark.parametrize(
    "query",
    [
        "channel_binding=require",
        "client_encoding=latin1",
        "gssencmode=require",
        "hostaddr=10.0.0.1",
        "keepalives=1",
        "keepalives_idle=30",
        "keepalives_interval=10",
        "keepalives_count=3",
        "load_balance_hosts=random",
        "tcp_user_timeout=1000",
        "require_auth=scram-sha-256",
        "sslsni=0",
        "sslcrldir=/etc",
        "sslmode=verify",
        "sslmode=verify-full",
        "sslmode=1",
        "ssl=true",
        "sslrootcert=system",
        "sslcert=/nowhere/client.pem",
        "sslkey=/nowhere/client.key",
        "sslcrl=/nowhere/crl.pem",
        "sslnegotiation=fast",
        "ssl_min_protocol_version=SSLv3",
        "target_session_attrs=standby",
        "target_session_attrs=writable",
        "connect_timeout=0",
        "connect_timeout=soon",
        "replication=database",
        "scram_client_key=" + "c2VjcmV0",
        "search_path=app",
        "sslmod=require",
        "prepared_statement_cache_size=0",
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", ALL + query)

    with pytest.raises(ConfigurationError) as refused:
        load(DatabaseSettings)

    said = str(refused.value)
    assert said.startswith("wrong configuration: DATABASE_URL: ")
    name = query.partition("=")[0]
    assert (name if name != "ssl" else "sslmode") in said
    assert "\n" not in said
    assert "u:p" not in said
    assert "c2VjcmV0" not in said


@pytest.mark.parametrize(
    ("url", "dsns"),
    [
        (ALL + "channel_binding=prefer", ["postgresql://u:p@h/db"]),
        (ALL + "connect_timeout=3&gssencmode=disable", ["postgresql://u:p@h/db"]),
        (ALL + "fallback_application_name=a", ["postgresql://u:p@h/db?application_name=a"]),
        (
            ALL + "application_name=b&fallback_application_name=a",
            ["postgresql://u:p@h/db?application_name=b"],
        ),
        (
            "postgresql://u:p%40@h1:5433,[::1]/db?sslmode=require",
            [
                "postgresql://u:p%40@/db?host=h1&port=5433&sslmode=require",
                "postgresql://u:p%40@/db?host=%5B%3A%3A1%5D&port=5432&sslmode=require",
            ],
        ),
        (
            "postgresql://u@/db?host=h1,h2&port=5433",
            [
                "postgresql://u@/db?host=h1&port=5433",
                "postgresql://u@/db?host=h2&port=5433",
            ],
        ),
        ("postgresql:///db?host=/run/pg", ["postgresql:///db?host=%2Frun%2Fpg&port=5432"]),
    ],
)
def test_parameters_of_libpq_are_understood(url: str, dsns: list[str]) -> None:
    assert parse_database_url(url).dsns == dsns


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h1:5432,h2:x/db",
        "postgresql://u:p@h1,,h2/db",
        "postgresql://u:p@h1,h2:70000/db",
        "postgresql://u:p@/db?host=h1,h2&port=1,2,3",
    ],
)
def test_wrong_hosts_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="port") as refused:
        parse_database_url(url)
    assert "u:p" not in str(refused.value)


def test_the_time_for_connecting_can_be_in_the_url() -> None:
    assert parse_database_url(ALL + "connect_timeout=7").connect_seconds == 7
    assert parse_database_url(ALL).connect_seconds is None


async def test_the_next_host_is_tried(database_server_url: str) -> None:
    server = async_url(database_server_url)
    several = server.set(drivername="postgresql").update_query_dict(
        {
            "host": f"127.0.0.1:1,{server.host or server.query['host']}:{server.port or 5432}",
            "application_name": "of-the-url",
            "connect_timeout": "5",
            "target_session_attrs": "read-write",
        }
    )
    database = database_at(several.render_as_string(hide_password=False))
    await database.ping()
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SHOW application_name")) == "of-the-url"
    await database.close()


def database_at(url: str, **settings: Any) -> Database:
    return Database(DatabaseSettings(database_url=SecretStr(url), _env_file=None, **settings))


@pytest.fixture
def own_database_url(database_server_url: str) -> Iterator[str]:
    with temporary_database(database_server_url) as url:
        yield url


async def configure(url: str, setting: str) -> None:
    """Set (`SET x = y`) or reset a default of new connections."""
    engine = open_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text("SET default_transaction_read_only = off"))
        await connection.commit()
        name = await connection.scalar(text("SELECT quote_ident(current_database())"))
        await connection.execute(text(f"ALTER DATABASE {name} {setting}"))
        await connection.commit()
    await engine.dispose()


async def cut(url: str) -> None:
    engine = open_engine(url)
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    await engine.dispose()


async def test_a_server_that_closes_connections_is_unavailable(database_server_url: str) -> None:
    database = database_at(database_server_url)

    def closed(*_connection: object) -> None:
        raise DisconnectionError("the server closed this connection")

    event.listen(database.engine.sync_engine, "checkout", closed)
    with pytest.raises(DatabaseUnavailable, match="closes each new connection"):
        await do(database, text("SELECT 1"))
    await database.close()


@pytest.mark.parametrize("default", ["repeatable read", "serializable"])
async def test_the_isolation_does_not_depend_on_the_servers_default(
    own_database_url: str, default: str
) -> None:
    await configure(own_database_url, f"SET default_transaction_isolation = '{default}'")
    database = database_at(own_database_url)
    command = open_engine(own_database_url, pooler=True)
    async with database.engine.begin() as connection:
        assert await isolation_of(connection) == "read committed"
    async with command.begin() as connection:
        assert await isolation_of(connection) == "read committed"
    await command.dispose()
    await database.close()


async def isolation_of(connection: AsyncConnection) -> object:
    return await connection.scalar(text("SELECT current_setting('transaction_isolation')"))


async def test_a_commit_is_durable_whatever_the_servers_default(own_database_url: str) -> None:
    asked = text("SELECT current_setting('synchronous_commit')")
    for default, used in [("off", "on"), ("remote_apply", "remote_apply")]:
        await configure(own_database_url, f"SET synchronous_commit = {default}")
        database = database_at(own_database_url)
        async with database.engine.connect() as connection:
            assert await connection.scalar(asked) == used
        await database.close()


async def test_too_many_connections_are_a_limit_of_the_server(database_server_url: str) -> None:
    role = f"limited_{secrets.token_hex(4)}"
    server = database_at(database_server_url)
    await do(server, text(f"CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 0"))
    limited = async_url(database_server_url).set(username=role, password="p")
    database = database_at(limited.render_as_string(hide_password=False))

    with pytest.raises(DatabaseUnavailable, match="too many connections") as refused:
        await database.ping()
    await do(server, text(f"DROP ROLE {role}"))
    await database.close()
    await server.close()

    assert categorize(refused.value) is ErrorCategory.LIMIT


async def test_an_empty_pool_is_counted_and_stays_ready(
    database_server_url: str,
) -> None:
    database = database_at(
        database_server_url,
        database_pool_size=1,
        database_max_overflow=0,
        database_pool_timeout_seconds=0.1,
    )
    before = REGISTRY.get_sample_value("database_pool_timeouts_total") or 0
    async with database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with pytest.raises(ConnectionPoolEmpty, match="DATABASE_POOL_SIZE") as empty:
            async with database.sessions() as session:
                await session.execute(text("SELECT 1"))
        await database.ping()
    await database.close()

    assert categorize(empty.value) is ErrorCategory.POOL_EMPTY
    assert REGISTRY.get_sample_value("database_pool_timeouts_total") == before + 1


async def test_the_state_of_the_pool_is_exported_while_open(database_server_url: str) -> None:
    def gauges() -> dict[str, float | None]:
        names = ("in_use", "idle", "overflow", "waiting", "limit")
        return {name: REGISTRY.get_sample_value(f"database_pool_{name}") for name in names}

    database = database_at(database_server_url, database_pool_size=1, database_max_overflow=1)
    with pool_gauges.exporting(database.engine):
        assert set(gauges().values()) == {0, 2}
        async with database.engine.connect(), database.engine.connect():
            waiting = asyncio.create_task(database.engine.connect().start())
            async with asyncio.timeout(30):
                while not gauges()["waiting"]:
                    await asyncio.sleep(0.01)
            assert gauges() == {"in_use": 2, "idle": 0, "overflow": 1, "waiting": 1, "limit": 2}
        await (await waiting).close()
        assert gauges() == {"in_use": 0, "idle": 1, "overflow": 0, "waiting": 0, "limit": 2}
    await database.close()
    assert set(gauges().values()) == {None}


async def test_a_read_only_server_is_left_and_found_again(
    own_database_url: str,
) -> None:
    database = database_at(own_database_url)
    table = text("CREATE TABLE IF NOT EXISTS things (id int)")
    async with database.engine.begin() as connection:
        await connection.execute(table)
    await configure(own_database_url, "SET default_transaction_read_only = on")
    await database.close()  # existing connections keep the old setting
    database = database_at(own_database_url)
    write = text("INSERT INTO things VALUES (1)")

    with pytest.raises(DBAPIError) as refused:
        await do(database, write)
    await open_two(database)
    with pytest.raises(DatabaseReadOnly, match="default_transaction_read_only"):
        await database.ping()
    await cut(own_database_url)  # pooled connections are closed
    await open_two(database)
    await configure(own_database_url, "RESET default_transaction_read_only")
    await database.ping()
    await do(database, write)
    await database.close()

    assert categorize(refused.value) is ErrorCategory.READ_ONLY


async def test_a_refused_write_drops_every_connection_of_the_pool(own_database_url: str) -> None:
    database = database_at(own_database_url)
    await do(database, text("CREATE TABLE things (id int)"))
    await configure(own_database_url, "SET default_transaction_read_only = on")
    await database.engine.dispose()
    await open_two(database)
    await configure(own_database_url, "RESET default_transaction_read_only")
    write = text("INSERT INTO things VALUES (1)")

    with pytest.raises(DBAPIError):
        await do(database, write)
    async with database.engine.begin() as first, database.engine.begin() as second:
        await first.execute(write)
        await second.execute(write)
    await database.close()


async def do(database: Database, statement: Any) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(statement)


async def test_an_unreachable_server_is_named() -> None:
    settings = DatabaseSettings(
        database_url=SecretStr("postgresql://u:secret@127.0.0.1:1/db"), _env_file=None
    )
    database = Database(settings)

    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1") as error:
        async with asyncio.timeout(5):
            await database.ping()
    await database.close()

    assert is_unavailable(error.value)
    assert "secret" not in str(error.value)


async def test_behind_a_pooler_no_prepared_statement_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    async def connect(*_args: Any, **options: Any) -> Any:
        asked.update(options)
        raise ConnectionRefusedError("not here")

    monkeypatch.setattr(asyncpg, "connect", connect)
    database = Database(DatabaseSettings(database_pooler=True, _env_file=None))
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    await database.close()

    assert asked["statement_cache_size"] == 0


class Link:
    """A TCP connection to PostgreSQL that can die silently, as when a host disappears."""

    def __init__(self, server_url: str) -> None:
        self._server_url = make_url(server_url)
        self._dead = asyncio.Event()  # of the connections that are open
        self._writers: list[asyncio.StreamWriter] = []

    def die(self) -> None:
        """Drop everything on the open connections; new ones work."""
        self._dead.set()
        self._dead = asyncio.Event()

    async def open(self) -> str:
        """Listen, and return the URL to connect to."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._listener.sockets[0].getsockname()
        through = self._server_url.set(host=host, port=port)
        return through.render_as_string(hide_password=False)

    def close(self) -> None:
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dead = self._dead
        server = await asyncio.open_connection(self._server_url.host, self._server_url.port)
        self._writers += [writer, server[1]]
        await asyncio.gather(
            self._carry(reader, server[1], dead), self._carry(server[0], writer, dead)
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            if not dead.is_set():
                writer.write(data)
        if not dead.is_set():
            writer.close()


@pytest.fixture
async def link(database_server_url: str) -> AsyncIterator[Link]:
    link = Link(database_server_url)
    yield link
    link.close()


def impatient(url: str, seconds: float) -> DatabaseSettings:
    return DatabaseSettings(
        database_url=SecretStr(url), database_command_timeout_seconds=seconds, _env_file=None
    )


async def open_two(database: Database) -> None:
    """Leave two connections in the pool."""
    async with database.engine.connect() as first, database.engine.connect() as second:
        await first.execute(text("SELECT 1"))
        await second.execute(text("SELECT 1"))


async def test_a_silent_connection_is_not_used_again(link: Link) -> None:
    database = Database(impatient(await link.open(), seconds=3))
    await open_two(database)
    link.die()

    with pytest.raises(DatabaseUnavailable) as away:
        async with asyncio.timeout(30):
            await do(database, text("SELECT 1"))
    await do(database, text("SELECT 1"))  # on neither of the two connections
    await database.close()

    assert is_unavailable(away.value)


async def test_closing_does_not_wait_for_a_silent_server(link: Link) -> None:
    database = Database(impatient(await link.open(), seconds=60))
    await open_two(database)
    link.die()

    async with asyncio.timeout(30):
        await database.close()


async def test_a_command_may_take_as_long_as_it_needs(database_server_url: str) -> None:
    database = Database(impatient(database_server_url, seconds=0.1), no_timeout=True)
    async with database.engine.connect() as connection:
        await connection.execute(text("SELECT pg_sleep(1)"))
    await database.close()


async def test_readiness_answers_in_time_on_a_connection_that_died(link: Link) -> None:
    database = database_at(await link.open())
    health = Health()
    health.add_readiness_check("database", database.ping)
    assert (await health.ready()).status == "ok"
    link.die()

    began = time.monotonic()
    report = await health.ready()
    took = time.monotonic() - began
    recovered = await health.ready()
    await database.close()

    assert "no answer" in report.checks["database"]
    assert took < CHECK_TIMEOUT_SECONDS + 1.5
    assert recovered.status == "ok"


class Interrupted:
    """A connection whose first statement is cancelled."""

    terminated = False

    async def execute(self, _statement: str) -> None:
        raise asyncio.CancelledError

    def terminate(self) -> None:
        self.terminated = True


async def test_a_connection_is_closed_when_its_setup_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Interrupted()

    async def connect(*_parts: object, **_options: object) -> Interrupted:
        return opened

    monkeypatch.setattr("app.platform.database.engine.asyncpg.connect", connect)
    with pytest.raises(asyncio.CancelledError):
        await Connector("postgresql://127.0.0.1/none", 1, None, pooler=False)()

    assert opened.terminated


async def test_the_migration_lock_survives_idle_limits(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_settings(url))
    async with database.engine.begin() as connection:
        name = await connection.scalar(text("SELECT quote_ident(current_database())"))
        limit = "SET idle_in_transaction_session_timeout = '1s'"
        await connection.execute(text(f"ALTER DATABASE {name} {limit}"))
    await database.close()

    def slow_migration(connection: Connection, _config: Config) -> None:
        connection.execute(text("SELECT pg_sleep(2)"))

    monkeypatch.setattr(migrations, "_upgrade", slow_migration)
    await migrations.upgrade(url)


MIGRATION = "revision: str = {revision!r}\ndown_revision: str | None = {before!r}\n"


def write_migrations(folder: Path, **files: object) -> Path:
    """Write a folder with a file for each revision: the revision before, or the text of the file."""
    (folder / "versions").mkdir()
    for revision, before in files.items():
        text_of_file = MIGRATION.format(revision=revision, before=before)
        if isinstance(before, str) and "\n" in before:
            text_of_file = before
        (folder / "versions" / f"{revision}.py").write_text(text_of_file)
    return folder


@pytest.mark.parametrize(
    ("files", "heads"),
    [
        ({"a1": None}, {"a1"}),
        ({"a1": None, "a2": "a1"}, {"a2"}),
        ({"a1": None, "a2": "a1", "b1": None}, {"a2", "b1"}),
        ({"a1": None, "b1": None, "c1": ("a1", "b1")}, {"c1"}),
        ({"a1": None, "a2": "a1", "plain": "revision = 'a3'\ndown_revision = 'a2'\n"}, {"a3"}),
    ],
)
def test_the_heads_are_those_that_alembic_finds(
    tmp_path: Path, files: dict[str, object], heads: set[str]
) -> None:
    folder = write_migrations(tmp_path, **files)
    (folder / "versions" / "__init__.py").touch()
    config = Config(attributes={})
    config.set_main_option("script_location", str(folder))

    assert migrations.read_heads(folder) == heads
    assert {*ScriptDirectory.from_config(config).get_heads()} == heads


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a2": "a1"},
        {"a1": None, "again": "revision = 'a1'\ndown_revision = None\n"},
        {"a1": None, "computed": "revision = 'a' + str(2)\ndown_revision = 'a1'\n"},
        {"a1": None, "alone": "revision = 'a2'\n"},
        {"a1": None, "broken": "revision = \n"},
    ],
)
def test_other_files_are_left_to_alembic(tmp_path: Path, files: dict[str, object]) -> None:
    assert not migrations.read_heads(write_migrations(tmp_path, **files))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"a1": None, "again": "revision = 'a1'\ndown_revision = None\n"},
            "a1.py and again.py both",
        ),
        ({"a1": None, "a3": "a2"}, "a3.py follows the migration a2, which is not in"),
    ],
)
def test_migrations_that_contradict_each_other_are_named(
    tmp_path: Path, files: dict[str, object], said: str
) -> None:
    with pytest.raises(migrations.InconsistentRevisions, match=said):
        migrations.check_revisions(write_migrations(tmp_path, **files))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"a1": None, "a2": "a1", "b1": None, "a3": ("a2", "b1")},
        {"a2": "a1", "computed": "revision = 'a' + str(1)\ndown_revision = None\n"},
        {"a2": "a1", "broken": "revision = \n"},
    ],
)
def test_consistent_or_unknown_migrations_are_accepted(
    tmp_path: Path, files: dict[str, object]
) -> None:
    migrations.check_revisions(write_migrations(tmp_path, **files))


async def test_a_complete_database_is_found_without_alembic(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrations.upgrade(url)
    monkeypatch.delattr(migrations, "_load_scripts")
    database = Database(database_settings(url))
    try:
        await migrations.SchemaCheck(database.probe).check()
    finally:
        await database.close()
