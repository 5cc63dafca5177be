import asyncio
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.database import (
    Database,
    DatabaseSettings,
    DatabaseUnavailable,
    async_url,
    is_unavailable,
)


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
        ("postgresql+asyncpg://h/db?ssl=verify-full", "postgresql://h/db?sslmode=verify-full"),
        ("postgres://u:p@h/db?sslrootcert=ca.pem", "postgresql://u:p@h/db?sslrootcert=ca.pem"),
    ],
)
async def test_parameters_of_libpq_are_left_to_asyncpg(
    monkeypatch: pytest.MonkeyPatch, given: str, handed_on: str
) -> None:
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


def test_a_database_that_is_away_is_seen_in_a_group_of_errors() -> None:
    assert is_unavailable(ExceptionGroup("lanes", [ValueError(), DatabaseUnavailable("away")]))
    assert not is_unavailable(ExceptionGroup("lanes", [ValueError()]))


@pytest.mark.parametrize(
    "url",
    ["mysql://h/db", "sqlite://", "http://h/db", "postgresq://h/db", "postgresql:/h", "h:5432", ""],
)
def test_what_is_no_postgresql_url_is_refused_with_one_that_is(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        async_url(url)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "postgresql://u:secret", "secret"])
def test_the_error_does_not_repeat_the_url(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql") as refused:
        async_url(url)

    assert "secret" not in str(refused.value)


class Sqlstate(Exception):
    """As drivers raise them: an error with a code."""

    def __init__(self, sqlstate: Any) -> None:
        super().__init__(f"code {sqlstate}")
        self.sqlstate = sqlstate


def wrapped(error: BaseException, times: int = 1) -> Exception:
    """`error` as it arrives through layers that raise their own."""
    outer: Exception
    for number in range(times):
        outer = RuntimeError(f"layer {number}")
        outer.__cause__ = error
        error = outer
    return outer


@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailable("away"),
        PoolTimeout("no connection was free"),
        DisconnectionError("closed"),
        DBAPIError("SELECT 1", {}, Exception("closed"), connection_invalidated=True),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.TooManyConnectionsError("53300"),
        asyncpg.AdminShutdownError("57P01"),
        asyncpg.ConnectionDoesNotExistError("08003"),
        asyncpg.ReadOnlySQLTransactionError("25006"),
        asyncpg.DiskFullError("53100"),
    ],
)
def test_an_absent_database_is_recognised_behind_any_layers(error: Exception) -> None:
    assert is_unavailable(error)
    assert is_unavailable(wrapped(error))
    assert is_unavailable(wrapped(error, times=3))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        TimeoutError("of a handler's own"),
        IntegrityError("INSERT", {}, Exception("duplicate")),
        asyncpg.UniqueViolationError("23505"),
        asyncpg.DeadlockDetectedError("40P01"),
        asyncpg.SerializationError("40001"),
        asyncpg.UndefinedTableError("42P01"),
        asyncpg.QueryCanceledError("57014"),
        Sqlstate(None),
        Sqlstate(8001),
        Sqlstate(""),
    ],
)
def test_a_wrong_statement_is_not_an_absent_database(error: Exception) -> None:
    assert not is_unavailable(error)
    assert not is_unavailable(wrapped(error))


def test_causes_that_go_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert not is_unavailable(first)


async def test_a_server_that_is_not_there_is_said_with_its_host() -> None:
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
