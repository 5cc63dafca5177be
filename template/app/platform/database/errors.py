"""Errors of the database: whose fault each is, and what may be said about it."""

from collections.abc import Awaitable, Callable, Iterator
from enum import IntEnum, auto
from typing import TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

T = TypeVar("T")

# How often a transaction that others made fail is run, the first time included.
MAX_TRANSACTION_ATTEMPTS = 5


class DatabaseUnavailable(Exception):
    """No connection to PostgreSQL could be made, or there was no answer in time."""


class DatabaseReadOnly(Exception):
    """The server that was reached takes no writes."""


class ConnectionPoolEmpty(Exception):
    """No connection of the pool became free in time."""


class ErrorCategory(IntEnum):
    """The party at fault for an error. Of several causes, the first in this order decides."""

    POOL_EMPTY = auto()
    """All connections of this process are in use: wait."""
    OUT_OF_DATE = auto()
    """A migration or a grant is missing: wait for the operator."""
    READ_ONLY = auto()
    """The server takes no writes, as a standby does: wait, and connect anew."""
    LIMIT = auto()
    """A limit or a resource of the server: wait."""
    UNAVAILABLE = auto()
    """There is no connection, or none any more: wait."""
    RETRY = auto()
    """Concurrent transactions: all is rolled back, and may succeed at once; else wait."""
    CONFLICT = auto()
    """The data that is there contradicts the statement."""
    INVALID_VALUE = auto()
    """A value in the statement does not fit."""
    BUG = auto()
    """The statement or the transaction is wrong."""


# Nothing in these is wrong with a request or a message: the same statement may succeed later.
_TRANSIENT = {
    ErrorCategory.POOL_EMPTY,
    ErrorCategory.OUT_OF_DATE,
    ErrorCategory.READ_ONLY,
    ErrorCategory.LIMIT,
    ErrorCategory.UNAVAILABLE,
    ErrorCategory.RETRY,
}

# The meaning of each code of the classes 08, 25, 40, 53, 55, 57, 58 and XX, and of single codes of
# others (PostgreSQL documentation, appendix A).
SQLSTATE_CATEGORIES = {
    # 08: connection exceptions. PgBouncer tells all of its own errors as 08P01.
    "08000": ErrorCategory.UNAVAILABLE,
    "08001": ErrorCategory.UNAVAILABLE,
    "08003": ErrorCategory.UNAVAILABLE,
    "08004": ErrorCategory.UNAVAILABLE,
    "08006": ErrorCategory.UNAVAILABLE,
    "08007": ErrorCategory.UNAVAILABLE,  # whether it has committed is not known
    "08P01": ErrorCategory.UNAVAILABLE,
    # 23: what others wrote meanwhile. All else of this class the code should have known.
    "23001": ErrorCategory.CONFLICT,
    "23503": ErrorCategory.CONFLICT,
    "23505": ErrorCategory.CONFLICT,
    "23P01": ErrorCategory.CONFLICT,
    # 25: invalid transaction states. The code began or ended a transaction at the wrong time.
    "25000": ErrorCategory.BUG,
    "25001": ErrorCategory.BUG,
    "25002": ErrorCategory.BUG,
    "25003": ErrorCategory.BUG,
    "25004": ErrorCategory.BUG,
    "25005": ErrorCategory.BUG,
    "25006": ErrorCategory.READ_ONLY,  # a standby, or default_transaction_read_only
    "25007": ErrorCategory.BUG,
    "25008": ErrorCategory.BUG,
    "25P01": ErrorCategory.BUG,
    "25P02": ErrorCategory.BUG,  # somebody caught the error before this one
    "25P03": ErrorCategory.LIMIT,  # idle_in_transaction_session_timeout
    "25P04": ErrorCategory.LIMIT,  # transaction_timeout
    # 26, 42P05: this service names no statement. A transaction pooler is between, and
    # DATABASE_POOLER is false.
    "26000": ErrorCategory.LIMIT,
    "42P05": ErrorCategory.LIMIT,
    # 40: the server rolled the transaction back.
    "40000": ErrorCategory.RETRY,
    "40001": ErrorCategory.RETRY,  # serialization failure; on a standby, a conflict with recovery
    "40002": ErrorCategory.CONFLICT,  # a constraint, at the end of the transaction
    "40003": ErrorCategory.UNAVAILABLE,  # whether it has completed is not known, so not at once
    "40P01": ErrorCategory.RETRY,  # deadlock
    # 42: what a migration or a grant brings. All else of this class is a wrong statement.
    "42P01": ErrorCategory.OUT_OF_DATE,
    "42703": ErrorCategory.OUT_OF_DATE,
    "42501": ErrorCategory.OUT_OF_DATE,
    # 53: insufficient resources.
    "53000": ErrorCategory.LIMIT,
    "53100": ErrorCategory.LIMIT,  # the disk is full
    "53200": ErrorCategory.LIMIT,  # memory, shared memory, or locks a transaction
    "53300": ErrorCategory.LIMIT,  # max_connections, or the role's or the database's limit
    "53400": ErrorCategory.LIMIT,  # temp_file_limit and the like
    # 55: objects that are not in the state that the statement needs.
    "55000": ErrorCategory.BUG,  # such as currval before nextval
    "55006": ErrorCategory.LIMIT,  # in use by others for the moment
    "55P02": ErrorCategory.BUG,
    "55P03": ErrorCategory.LIMIT,  # lock_timeout, or NOWAIT: others hold the lock
    "55P04": ErrorCategory.BUG,  # an enum's value in the transaction that adds it
    # 57: operator intervention.
    "57000": ErrorCategory.LIMIT,
    "57014": ErrorCategory.LIMIT,  # statement_timeout, or pg_cancel_backend
    "57P01": ErrorCategory.UNAVAILABLE,
    "57P02": ErrorCategory.UNAVAILABLE,
    "57P03": ErrorCategory.UNAVAILABLE,
    "57P04": ErrorCategory.UNAVAILABLE,
    "57P05": ErrorCategory.UNAVAILABLE,  # idle_session_timeout: the connection is gone, nothing else
    # 58: the system below the server, mostly its disk.
    "58000": ErrorCategory.LIMIT,
    "58030": ErrorCategory.LIMIT,
    "58P01": ErrorCategory.LIMIT,  # a data file or a library is missing on the server
    "58P02": ErrorCategory.LIMIT,
    "58P03": ErrorCategory.BUG,  # a file name in the statement: it will not become shorter
    # XX: broken data waits to be repaired. An internal error may lie in one statement for ever.
    "XX000": ErrorCategory.BUG,
    "XX001": ErrorCategory.LIMIT,
    "XX002": ErrorCategory.LIMIT,
}

# For codes that are not listed, as those of a newer server.
_CLASS_CATEGORIES = {
    "08": ErrorCategory.UNAVAILABLE,
    "22": ErrorCategory.INVALID_VALUE,
    "40": ErrorCategory.RETRY,
    "53": ErrorCategory.LIMIT,
    "54": ErrorCategory.INVALID_VALUE,  # more than the server's program can take, such as an index's row
    "57": ErrorCategory.LIMIT,
    "58": ErrorCategory.LIMIT,
}

_SCHEMA_CODES = {"42P01", "42703"}


def categorize(error: BaseException) -> ErrorCategory | None:
    """Classify `error` by all of its causes; None if none of them is the database's."""
    return min((found for cause in _causes(error) if (found := _category(cause))), default=None)


def is_unavailable(error: BaseException) -> bool:
    """Whether `error` is an outage or a limit of the database, rather than a fault of the request
    or the message. The same statement may succeed later, so callers wait."""
    return categorize(error) in _TRANSIENT


def is_retryable(error: BaseException) -> bool:
    """Whether the transaction was rolled back because of concurrent ones, and may succeed at once."""
    return categorize(error) is ErrorCategory.RETRY


def is_schema_missing(error: BaseException) -> bool:
    """Whether `error` says that a table or a column is not there."""
    return any(sqlstate_of(cause) in _SCHEMA_CODES for cause in _causes(error))


async def retry_transaction(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`, a whole transaction, again at once while others make it fail, up to MAX_TRANSACTION_ATTEMPTS
    times."""
    for _ in range(MAX_TRANSACTION_ATTEMPTS - 1):
        try:
            return await work()
        except Exception as error:
            if not is_retryable(error):
                raise
    return await work()


def is_confirmed_rollback(error: BaseException) -> bool:
    """Whether the server itself said that the transaction is rolled back. An outage or a limit of
    the server ends connections, and leaves open what became of a COMMIT."""
    told = any(sqlstate_of(cause) for cause in _causes(error))
    return told and categorize(error) not in {ErrorCategory.UNAVAILABLE, ErrorCategory.LIMIT}


def sqlstate_of(error: BaseException) -> str | None:
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def summary(error: BaseException) -> str:
    """The kind of `error`, and what it says."""
    said = error_message(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def error_message(error: BaseException) -> str:
    """The message of `error`; of the database's errors the first line only.

    The lines that follow repeat the statement. Values are not in it (engine.py removes them), but
    for what a function of the service's own says (RAISE).
    """
    cause: BaseException = error
    if isinstance(error, StatementError) and error.orig is not None:
        cause = error.orig.__cause__ or error.orig
    elif not isinstance(error, asyncpg.PostgresError):
        return str(error)
    return str(cause).partition("\n")[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what a group of errors holds."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or cause in found:
            continue
        found.append(cause)
        waiting.append(cause.__cause__)
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
    return iter(found)


def _category(error: BaseException) -> ErrorCategory | None:
    if isinstance(error, ConnectionPoolEmpty | PoolTimeout):
        return ErrorCategory.POOL_EMPTY
    if isinstance(error, DatabaseReadOnly):
        return ErrorCategory.READ_ONLY
    if isinstance(error, DatabaseUnavailable | DisconnectionError):
        return ErrorCategory.UNAVAILABLE
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return ErrorCategory.RETRY  # a migration has changed what a prepared statement returns
    code = sqlstate_of(error)
    if code is not None:
        return SQLSTATE_CATEGORIES.get(code) or _CLASS_CATEGORIES.get(code[:2], ErrorCategory.BUG)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return ErrorCategory.UNAVAILABLE
    return None


def violated_constraint(error: IntegrityError) -> str | None:
    """The name of the constraint that a statement violated_constraint."""
    cause = error.orig.__cause__ if error.orig else None
    name = getattr(cause, "constraint_name", None)
    return name if isinstance(name, str) else None
