"""The database: settings, engine and sessions."""

import asyncio
import re
from typing import Any

import asyncpg
from pydantic import Field, SecretStr, field_validator
from sqlalchemy import URL, ExceptionContext, MetaData, event, make_url, text
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from app.config import EnvSettings
from app.database_errors import DatabaseUnavailable

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# The SQLSTATE class of values that do not fit, whether the server or asyncpg finds out.
_DATA_EXCEPTION = "22"

# How long connections may take to be closed in good order.
_CLOSE_SECONDS = 3.0


class Base(DeclarativeBase):
    """Base of every table of the service."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class DatabaseSettings(EnvSettings):
    """How to reach PostgreSQL.

    `database_url` is taken as `postgresql://…` or with a driver, with libpq's parameters (`sslmode`).
    `database_command_timeout_seconds` is for statements of processes that serve, locks that they wait
    for included: a database that has not answered by then is taken to be away, as a host that is
    gone does not say so. Migrations and the command line have no such limit.
    `database_pooler` is for a transaction pooler between the service and the server (PgBouncer):
    no prepared statement is kept from one transaction to the next.
    """

    database_url: SecretStr = SecretStr("postgresql://postgres@localhost:5432/postgres")
    database_pool_size: int = Field(10, ge=1)
    database_max_overflow: int = Field(10, ge=0)
    database_pool_timeout_seconds: float = Field(5.0, gt=0)
    database_connect_timeout_seconds: float = Field(5.0, gt=0)
    database_command_timeout_seconds: float = Field(60.0, gt=0)
    database_pooler: bool = False

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr) -> SecretStr:
        async_url(value.get_secret_value())
        return value


def async_url(database_url: str) -> URL:
    """`database_url` for SQLAlchemy and asyncpg.

    Raises ValueError for anything that is no PostgreSQL URL; the message does not repeat it.
    """
    try:
        url = make_url(database_url)
    except (ArgumentError, ValueError):  # ValueError quotes what stands in the port's place
        raise ValueError("not a URL; use postgresql://user:password@host:5432/database") from None
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError("only PostgreSQL is supported; use postgresql://…")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError(
            "a port is from 1 to 65535; use postgresql://user:password@host:5432/database"
        )
    return url.set(drivername="postgresql+asyncpg")


class Database:
    """The connection pool and the sessions on it.

    Statements take at most `database_command_timeout_seconds`, or as long as they need if `patient`.
    """

    def __init__(self, settings: DatabaseSettings, *, patient: bool = False) -> None:
        limit = None if patient else settings.database_command_timeout_seconds
        self.engine = open_engine(
            settings.database_url.get_secret_value(),
            connect_seconds=settings.database_connect_timeout_seconds,
            command_seconds=limit,
            pooler=settings.database_pooler,
            pool_size=settings.database_pool_size,
            max_overflow=settings.database_max_overflow,
            pool_timeout=settings.database_pool_timeout_seconds,
        )
        self.sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self.engine, expire_on_commit=False
        )

    async def ping(self) -> None:
        """Do one round trip. Raises what the driver raises."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close the connections; a server that does not answer is hung up on after a few seconds."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.engine.dispose()
        except TimeoutError:
            event.listen(self.engine.sync_engine, "close", _hang_up)
            await self.engine.dispose()


def _hang_up(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.driver_connection.terminate()


def open_engine(
    database_url: str,
    *,
    connect_seconds: float = 5.0,
    command_seconds: float | None = None,
    pooler: bool = False,
    **options: Any,
) -> AsyncEngine:
    """An engine for `database_url`; `options` are those of SQLAlchemy's create_engine.

    Where no connection can be made, whatever the reason, and where a statement is not answered within
    `command_seconds`, it raises DatabaseUnavailable. Its errors do not repeat what statements were
    given, as that may be personal data.
    """
    url = async_url(database_url)
    libpq = _libpq_url(url)
    # With no cache a prepared statement is unnamed, and gone with its transaction.
    cache = {"statement_cache_size": 0} if pooler else {}

    async def connect(*_parts: Any, **_names: Any) -> Any:
        # SQLAlchemy hands over the URL in parts, of which asyncpg does not know all.
        try:
            return await asyncpg.connect(
                libpq, timeout=connect_seconds, command_timeout=command_seconds, **cache
            )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            reason = str(error) or type(error).__name__  # a time-out has no words
            host = url.host or "a local socket"
            raise DatabaseUnavailable(
                f"cannot connect to PostgreSQL at {host}: {reason}"
            ) from error

    arguments: dict[str, Any] = {"async_creator_fn": connect}
    if pooler:
        arguments |= {
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        }
    engine = create_async_engine(
        url.set(query={}), connect_args=arguments, hide_parameters=True, **options
    )
    event.listen(engine.sync_engine, "checkout", _replace_closed_connection)
    event.listen(engine.sync_engine, "handle_error", _forget_values)
    event.listen(engine.sync_engine, "handle_error", _take_for_away)
    return engine


def _replace_closed_connection(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
    # asyncpg notices when the server hangs up, so this costs no round trip (a pre-ping costs three).
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed this connection")


def _forget_values(context: ExceptionContext) -> None:
    # DETAIL holds values of the row ("Key (email)=(…) already exists"), and what is said of a value
    # that does not fit quotes it. Tracebacks would show both.
    cause = context.original_exception.__cause__
    if not isinstance(cause, asyncpg.PostgresError):
        return
    cause.detail = None
    if cause.sqlstate is not None and cause.sqlstate.startswith(_DATA_EXCEPTION):
        said = _without_values(cause)
        cause.__cause__ = None  # what asyncpg stumbled over
        for error in (cause, context.original_exception, context.sqlalchemy_exception):
            if error is not None:
                error.args = (said,)


def _without_values(error: asyncpg.PostgresError) -> str:
    place = re.match(r"invalid input for query argument \$\d+", str(error))
    said = place[0] if place else "data exception"
    return f"{said} ({type(error).__name__}, SQLSTATE {error.sqlstate})"


def _take_for_away(context: ExceptionContext) -> None:
    # SQLAlchemy does not use the connection again after a time-out. Those in the pool would each have
    # a wait of their own for a host that is gone.
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True
        raise DatabaseUnavailable("PostgreSQL did not answer a statement in time")


def _libpq_url(url: URL) -> str:
    # asyncpg reads libpq's parameters (sslmode, sslrootcert, target_session_attrs, …) from a URL
    # only; given one by one it knows them by other names, or not at all.
    query = dict(url.query)
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)
