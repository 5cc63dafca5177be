"""The database: settings, engine and sessions."""

import asyncio
import re
from typing import Any

import asyncpg
from prometheus_client import Counter
from pydantic import Field, SecretStr, field_validator
from sqlalchemy import (
    AsyncAdaptedQueuePool,
    ExceptionContext,
    MetaData,
    PoolProxiedConnection,
    event,
    text,
)
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from app.platform.config import EnvSettings
from app.platform.database.errors import (
    ConnectionPoolEmpty,
    DatabaseReadOnly,
    DatabaseUnavailable,
    ErrorCategory,
    categorize,
)
from app.platform.database.url import parse_database_url

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# The SQLSTATE class of values that do not fit, whether the server or asyncpg finds out.
_DATA_EXCEPTION_CLASS = "22"

_CONNECT_ERRORS = (
    OSError,
    ValueError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# What is committed is sent, or its offset is: the server may not forget it in a crash. Stricter
# settings than `on` stay.
_ENABLE_SYNCHRONOUS_COMMIT = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)

# For a transaction that is open as long as it takes, and is mostly idle. A server before version 17 has
# no transaction_timeout.
DISABLE_TIMEOUTS = text(
    "SELECT set_config(name, '0', true) FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)

# How long connections may take to be closed in good order.
_CLOSE_SECONDS = 3.0


class Base(DeclarativeBase):
    """Base of every table of the service."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class DatabaseSettings(EnvSettings):
    """Settings of the connections to PostgreSQL.

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
        parse_database_url(value.get_secret_value())
        return value


pool_timeouts = Counter(
    "database_pool_timeouts_total", "Waits for a connection of the pool that ended without one"
)


class CountingPool(AsyncAdaptedQueuePool):
    """A pool that says, and counts, that it is empty."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except PoolTimeout as error:
            pool_timeouts.inc()
            raise ConnectionPoolEmpty(
                f"all {self.checkedout()} connections of the pool are in use"
                " (DATABASE_POOL_SIZE, DATABASE_MAX_OVERFLOW)"
            ) from error
        except InvalidRequestError as error:  # it was replaced, and that one was closed, too
            raise DatabaseUnavailable("PostgreSQL closes each connection at once") from error


class Database:
    """The connection pool and the sessions on it.

    Statements take at most `database_command_timeout_seconds`, or as long as they need if `no_timeout`.
    """

    def __init__(self, settings: DatabaseSettings, *, no_timeout: bool = False) -> None:
        url, pooler = settings.database_url.get_secret_value(), settings.database_pooler
        limit = None if no_timeout else settings.database_command_timeout_seconds
        connect_seconds = settings.database_connect_timeout_seconds
        self.engine = open_engine(
            url,
            connect_seconds=connect_seconds,
            command_seconds=limit,
            pooler=pooler,
            poolclass=CountingPool,
            pool_size=settings.database_pool_size,
            max_overflow=settings.database_max_overflow,
            pool_timeout=settings.database_pool_timeout_seconds,
        )
        self.sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self.engine, expire_on_commit=False
        )
        connector = Connector(url, connect_seconds, limit, pooler=pooler)
        self.probe = Probe(connector)
        # Apart from readiness, which must not wait while a measurement waits for a lock.
        self.metrics_probe = Probe(connector)
        self._read_only = False
        self._pool_is_stale = False
        # First of the listeners: SQLAlchemy lets only one of them replace the connection.
        event.listen(self.engine.sync_engine, "checkout", self._invalidate_stale_pool, insert=True)

    async def ping(self) -> None:
        """Ask whether the database can be written to, beside the pool.

        Raises DatabaseReadOnly, and what the driver raises.
        """
        try:
            await self.probe.check_writable()
        except DatabaseReadOnly:
            self._read_only = self._pool_is_stale = True
            raise
        if self._read_only:  # what the pool opened in between may lead to the server of before
            self._read_only, self._pool_is_stale = False, True

    def _invalidate_stale_pool(self, *_connection: object) -> None:
        if self._pool_is_stale:
            self._pool_is_stale = False
            raise InvalidatePoolError("the database took no writes")

    async def close(self) -> None:
        """Close the connections; a server that does not answer is hung up on after a few seconds."""
        self.probe.close()
        self.metrics_probe.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.engine.dispose()
        except TimeoutError:
            event.listen(self.engine.sync_engine, "close", _terminate)
            await self.engine.dispose()


class Probe:
    """A connection for readiness or measurements: those of the pool may all be in use.

    It is hung up on when a question fails or is cancelled, so that none waits for a dead host twice.
    """

    def __init__(self, connect: "Connector") -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    async def check_writable(self) -> None:
        """Raises DatabaseReadOnly, and what `fetch` raises."""
        ((standby, read_only),) = await self.fetch(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"
        )
        if standby or read_only:
            self.close()  # the name may lead elsewhere, or the setting be another, next time
            raise DatabaseReadOnly(
                "the server is a standby, which takes no writes"
                if standby
                else "default_transaction_read_only is on: no writes are taken"
            )

    async def fetch(self, query: str) -> list[asyncpg.Record]:
        """The rows of `query`, in a transaction. Raises what the driver raises."""
        async with self._lock:
            try:
                return await self._fetch(query)
            except BaseException:
                self.close()
                raise

    async def _fetch(self, query: str) -> list[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        # A transaction holds one connection of a pooler's from the first message to the last.
        await self._connection.execute("BEGIN")
        rows: list[asyncpg.Record] = await self._connection.fetch(query)
        await self._connection.execute("COMMIT")
        return rows

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _terminate(dbapi_connection: Any, _record: Any) -> None:
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
    arguments: dict[str, Any] = {
        "async_creator_fn": Connector(database_url, connect_seconds, command_seconds, pooler=pooler)
    }
    if pooler:
        arguments |= {
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: "",
        }
    engine = create_async_engine(
        parse_database_url(database_url).url.set(query={}),
        connect_args=arguments,
        hide_parameters=True,
        # Whatever the server's default is: with a stricter one, transactions fail that need not.
        isolation_level="READ COMMITTED",
        **options,
    )
    event.listen(engine.sync_engine, "checkout", _replace_closed_connection)
    event.listen(engine.sync_engine, "handle_error", _redact_values)
    event.listen(engine.sync_engine, "handle_error", _invalidate_read_only_pool)
    event.listen(engine.sync_engine, "handle_error", _report_timeout_as_unavailable)
    return engine


class Connector:
    """Opens connections, trying each host of the URL in turn. Raises DatabaseUnavailable."""

    def __init__(
        self,
        database_url: str,
        connect_seconds: float,
        command_seconds: float | None,
        *,
        pooler: bool,
    ) -> None:
        address = parse_database_url(database_url)
        self._dsns, self._hosts = address.dsns, address.hosts
        self._pooler = pooler
        self._options: dict[str, Any] = {
            "timeout": address.connect_seconds or connect_seconds,
            "command_timeout": command_seconds,
        }
        if pooler:  # with no cache a prepared statement is unnamed, and gone with its transaction
            self._options["statement_cache_size"] = 0

    async def __call__(self, *_parts: Any, **_names: Any) -> asyncpg.Connection:
        # SQLAlchemy hands over the URL in parts, of which asyncpg does not know all.
        errors: list[Exception] = []
        for dsn in self._dsns:
            try:
                return await self._open(dsn)
            except _CONNECT_ERRORS as error:
                errors.append(error)
        reasons = "; ".join(str(e) or type(e).__name__ for e in errors)  # a time-out has no words
        raise DatabaseUnavailable(
            f"cannot connect to PostgreSQL at {self._hosts}: {reasons}"
        ) from errors[-1]

    async def _open(self, dsn: str) -> asyncpg.Connection:
        connection = await asyncpg.connect(dsn, **self._options)
        try:
            if not self._pooler:  # behind one, it would be set for whoever has the connection next
                await connection.execute(_ENABLE_SYNCHRONOUS_COMMIT)
        except BaseException:  # cancelled, too: nobody else knows of the connection
            connection.terminate()
            raise
        return connection


def _replace_closed_connection(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
    # asyncpg notices when the server hangs up, so this costs no round trip (a pre-ping costs three).
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed this connection")


def _redact_values(context: ExceptionContext) -> None:
    # DETAIL holds values of the row ("Key (email)=(…) already exists"), and what is said of a value
    # that does not fit quotes it. Tracebacks would show both.
    cause = context.original_exception.__cause__
    if not isinstance(cause, asyncpg.PostgresError):
        return
    cause.detail = None
    if cause.sqlstate is not None and cause.sqlstate.startswith(_DATA_EXCEPTION_CLASS):
        said = _redacted_message(cause)
        cause.__cause__ = None  # what asyncpg stumbled over
        for error in (cause, context.original_exception, context.sqlalchemy_exception):
            if error is not None:
                error.args = (said,)


def _redacted_message(error: asyncpg.PostgresError) -> str:
    place = re.match(r"invalid input for query argument \$\d+", str(error))
    said = place[0] if place else "data exception"
    return f"{said} ({type(error).__name__}, SQLSTATE {error.sqlstate})"


def _invalidate_read_only_pool(context: ExceptionContext) -> None:
    # After a fail-over, the connections of the pool may lead to what has become a standby. New ones
    # lead to where the name points now.
    if categorize(context.original_exception) is ErrorCategory.READ_ONLY:
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


def _report_timeout_as_unavailable(context: ExceptionContext) -> None:
    # SQLAlchemy does not use the connection again after a time-out. Those in the pool would each have
    # a wait of their own for a host that is gone.
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True
        raise DatabaseUnavailable("PostgreSQL did not answer a statement in time")
