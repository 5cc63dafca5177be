"""The database: settings, engine and sessions."""

import asyncio
import re
from typing import Any, cast

import asyncpg
from pydantic import Field, SecretStr, field_validator
from sqlalchemy import ExceptionContext, MetaData, Table, event, text
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from app.platform.config import EnvSettings
from app.platform.database.errors import (
    NO_ANSWER,
    DatabaseReadOnly,
    DatabaseUnavailable,
    ErrorCategory,
    categorize,
)
from app.platform.database.pool import CountingPool
from app.platform.database.url import parse_database_url

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# The SQLSTATE class of invalid values, whether the server or asyncpg rejects them.
_DATA_EXCEPTION_CLASS = "22"

_CONNECT_ERRORS = (
    OSError,
    ValueError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

# After a commit, events are sent and offsets are committed, so a crash of the server must not lose
# it. Settings stricter than `on` stay.
_ENABLE_SYNCHRONOUS_COMMIT = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)

# For a transaction that stays open while other work is done. A server before version 17 has no
# transaction_timeout.
DISABLE_TIMEOUTS = text(
    "SELECT set_config(name, '0', true) FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)

# The time for closing connections in good order.
_CLOSE_SECONDS = 3.0


class Base(DeclarativeBase):
    """Base class of the service's tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


def table_of(model: type[Base]) -> Table:
    """Return the table of a mapped class, for statements that need no objects of it."""
    return cast(Table, model.__table__)


class DatabaseSettings(EnvSettings):
    """Settings of the connections to PostgreSQL.

    `database_url` is `postgresql://…`, with or without a driver, with libpq's parameters (`sslmode`).
    `database_command_timeout_seconds` limits each statement of a serving process, including its wait
    for locks. After that the database counts as unavailable: a host that disappears sends no error.
    Migrations and the command line have no such limit.
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


class Database:
    """The connection pool and its sessions.

    A statement takes at most `database_command_timeout_seconds`, or any time with `no_timeout`.
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
        # Separate, because readiness must not wait while a measurement waits for a lock.
        self.metrics_probe = Probe(connector)
        self._read_only = False
        self._pool_is_stale = False
        # The first listener: SQLAlchemy lets only one of them replace the connection.
        event.listen(self.engine.sync_engine, "checkout", self._invalidate_stale_pool, insert=True)

    async def ping(self) -> None:
        """Check outside the pool that the database can be written to.

        Raises DatabaseReadOnly, and the driver's errors.
        """
        try:
            await self.probe.check_writable()
        except DatabaseReadOnly:
            self._read_only = self._pool_is_stale = True
            raise
        if self._read_only:  # connections opened meanwhile may lead to the old server
            self._read_only, self._pool_is_stale = False, True

    def _invalidate_stale_pool(self, *_connection: object) -> None:
        if self._pool_is_stale:
            self._pool_is_stale = False
            raise InvalidatePoolError("the database took no writes")

    async def close(self) -> None:
        """Close the connections; after a few seconds without an answer, terminate them."""
        self.probe.close()
        self.metrics_probe.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.engine.dispose()
        except TimeoutError:
            event.listen(self.engine.sync_engine, "close", _terminate)
            await self.engine.dispose()


class Probe:
    """A connection outside the pool, whose connections may all be in use: for readiness and metrics.

    It is terminated when a query fails or is cancelled, so that no other waits for a dead host.
    """

    def __init__(self, connect: "Connector") -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    async def check_writable(self) -> None:
        """Raise DatabaseReadOnly on a server without writes, and the errors of `fetch`."""
        ((standby, read_only),) = await self.fetch(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"
        )
        if standby or read_only:
            self.close()  # a new connection may lead to another server, or see another setting
            raise DatabaseReadOnly(
                "the server is a standby, which takes no writes"
                if standby
                else "the server takes no writes: default_transaction_read_only is on"
            )

    async def fetch(self, query: str) -> list[asyncpg.Record]:
        """Return the rows of `query`, run in a transaction. Raises the driver's errors."""
        async with self._lock:
            try:
                return await self._fetch(query)
            except BaseException:
                self.close()
                raise

    async def _fetch(self, query: str) -> list[asyncpg.Record]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        # In a transaction, a pooler keeps to one connection from the first message to the last.
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
    """Return an engine for `database_url`; `options` are those of SQLAlchemy's create_engine.

    It raises DatabaseUnavailable if no connection can be made, for whatever reason, or a statement is
    not answered within `command_seconds`. Its errors contain no values, which may be personal data.
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
        # With a stricter default of the server, more transactions would fail.
        isolation_level="READ COMMITTED",
        **options,
    )
    event.listen(engine.sync_engine, "checkout", _replace_closed_connection)
    event.listen(engine.sync_engine, "handle_error", _redact_values)
    event.listen(engine.sync_engine, "handle_error", _invalidate_read_only_pool)
    event.listen(engine.sync_engine, "handle_error", _report_timeout_as_unavailable)
    return engine


class Connector:
    """A function that connects to the first host that answers, or raises DatabaseUnavailable."""

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
        if pooler:
            # Without a cache, prepared statements are unnamed and end with their transaction.
            self._options["statement_cache_size"] = 0

    async def __call__(self, *_parts: Any, **_names: Any) -> asyncpg.Connection:
        # SQLAlchemy passes the parts of the URL, but asyncpg does not know all of them.
        errors: list[Exception] = []
        for dsn in self._dsns:
            try:
                return await self._open(dsn)
            except _CONNECT_ERRORS as error:
                errors.append(error)
        reasons = "; ".join(str(e) or type(e).__name__ for e in errors)  # a time-out has no message
        raise DatabaseUnavailable(
            f"cannot connect to PostgreSQL at {self._hosts}: {reasons}"
        ) from errors[-1]

    async def _open(self, dsn: str) -> asyncpg.Connection:
        connection = await asyncpg.connect(dsn, **self._options)
        try:
            if not self._pooler:  # with one, the next client of the connection would inherit it
                await connection.execute(_ENABLE_SYNCHRONOUS_COMMIT)
        except BaseException:  # also when cancelled: nothing else refers to the connection
            connection.terminate()
            raise
        return connection


def _replace_closed_connection(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
    # asyncpg notices when the server disconnects, so no round trip is needed (a pre-ping takes three).
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed this connection")


def _redact_values(context: ExceptionContext) -> None:
    # DETAIL contains values of the row ("Key (email)=(…) already exists"), and the message about an
    # invalid value quotes it. Tracebacks would show both.
    cause = context.original_exception.__cause__
    if not isinstance(cause, asyncpg.PostgresError):
        return
    cause.detail = None
    if cause.sqlstate is not None and cause.sqlstate.startswith(_DATA_EXCEPTION_CLASS):
        message = _redacted_message(cause)
        cause.__cause__ = None  # asyncpg's own error quotes the value
        for error in (cause, context.original_exception, context.sqlalchemy_exception):
            if error is not None:
                error.args = (message,)


def _redacted_message(error: asyncpg.PostgresError) -> str:
    argument = re.match(r"invalid input for query argument \$\d+", str(error))
    message = argument[0] if argument else "data exception"
    return f"{message} ({type(error).__name__}, SQLSTATE {error.sqlstate})"


def _invalidate_read_only_pool(context: ExceptionContext) -> None:
    # After a fail-over, pooled connections may lead to a server that has become a standby. New ones
    # resolve the host's name again.
    if categorize(context.original_exception) is ErrorCategory.READ_ONLY:
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


def _report_timeout_as_unavailable(context: ExceptionContext) -> None:
    # SQLAlchemy does not use this connection again after a time-out. Each other one of the pool would
    # wait separately for a host that has disappeared.
    if isinstance(context.original_exception, TimeoutError):
        context.invalidate_pool_on_disconnect = True
        raise DatabaseUnavailable(NO_ANSWER)
