"""Errors of the database: their category, and a message without values."""

from collections.abc import Awaitable, Callable, Iterator
from enum import IntEnum, auto
from typing import TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

T = TypeVar("T")

# How often a transaction runs that concurrent ones make fail, the first time included.
MAX_TRANSACTION_ATTEMPTS = 5

NO_ANSWER = "PostgreSQL did not answer a statement in time"


class DatabaseUnavailable(Exception):
    """No connection to PostgreSQL could be made, or it did not answer in time."""


class DatabaseReadOnly(Exception):
    """The server takes no writes."""


class ConnectionPoolEmpty(Exception):
    """No connection of the pool became free in time."""


class ErrorCategory(IntEnum):
    """The category of an error. Of several causes, the first in this order decides."""

    POOL_EMPTY = auto()
    """All connections of this process are in use: wait."""
    OUT_OF_DATE = auto()
    """A migration or a grant is missing: wait for an operator."""
    READ_ONLY = auto()
    """The server takes no writes, for example as a standby: wait, and connect again."""
    LIMIT = auto()
    """A limit or a resource of the server: wait."""
    UNAVAILABLE = auto()
    """There is no connection, or it was lost: wait."""
    RETRY = auto()
    """Rolled back because of concurrent transactions: retry at once, then wait."""
    CONFLICT = auto()
    """The statement contradicts existing data."""
    INVALID_VALUE = auto()
    """A value in the statement is invalid."""
    BUG = auto()
    """The statement or the transaction is wrong."""


# No fault of a request or a message: the same statement may succeed later.
_TRANSIENT = {
    ErrorCategory.POOL_EMPTY,
    ErrorCategory.OUT_OF_DATE,
    ErrorCategory.READ_ONLY,
    ErrorCategory.LIMIT,
    ErrorCategory.UNAVAILABLE,
    ErrorCategory.RETRY,
}

# All codes of the classes 08, 25, 40, 53, 55, 57, 58 and XX, and single codes of others (PostgreSQL
# documentation, appendix A).
SQLSTATE_CATEGORIES = {
    # 08: connection exceptions. PgBouncer reports all of its own errors as 08P01.
    "08000": ErrorCategory.UNAVAILABLE,
    "08001": ErrorCategory.UNAVAILABLE,
    "08003": ErrorCategory.UNAVAILABLE,
    "08004": ErrorCategory.UNAVAILABLE,
    "08006": ErrorCategory.UNAVAILABLE,
    "08007": ErrorCategory.UNAVAILABLE,  # the outcome of a commit is unknown
    "08P01": ErrorCategory.UNAVAILABLE,
    # 23: conflicts with concurrent writes. The other codes of this class are faults of the code.
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
    "25P02": ErrorCategory.BUG,  # an earlier error was caught
    "25P03": ErrorCategory.LIMIT,  # idle_in_transaction_session_timeout
    "25P04": ErrorCategory.LIMIT,  # transaction_timeout
    # 26, 42P05: a transaction pooler is in use, and DATABASE_POOLER is false.
    "26000": ErrorCategory.LIMIT,
    "42P05": ErrorCategory.LIMIT,
    # 40: the server rolled the transaction back.
    "40000": ErrorCategory.RETRY,
    "40001": ErrorCategory.RETRY,  # serialization failure; on a standby, a conflict with recovery
    "40002": ErrorCategory.CONFLICT,  # a constraint, at the end of the transaction
    "40003": ErrorCategory.UNAVAILABLE,  # the outcome is unknown, so no retry at once
    "40P01": ErrorCategory.RETRY,  # deadlock
    # 42: a missing migration or grant. The other codes of this class are wrong statements.
    "42P01": ErrorCategory.OUT_OF_DATE,
    "42703": ErrorCategory.OUT_OF_DATE,
    "42501": ErrorCategory.OUT_OF_DATE,
    # 53: insufficient resources.
    "53000": ErrorCategory.LIMIT,
    "53100": ErrorCategory.LIMIT,  # the disk is full
    "53200": ErrorCategory.LIMIT,  # memory, shared memory, or locks a transaction
    "53300": ErrorCategory.LIMIT,  # max_connections, or the role's or the database's limit
    "53400": ErrorCategory.LIMIT,  # such as temp_file_limit
    # 55: an object is not in the state that the statement needs.
    "55000": ErrorCategory.BUG,  # such as currval before nextval
    "55006": ErrorCategory.LIMIT,  # in use at the moment
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
    "57P05": ErrorCategory.UNAVAILABLE,  # idle_session_timeout
    # 58: errors of the operating system, mostly of the disk.
    "58000": ErrorCategory.LIMIT,
    "58030": ErrorCategory.LIMIT,
    "58P01": ErrorCategory.LIMIT,  # a data file or a library is missing on the server
    "58P02": ErrorCategory.LIMIT,
    "58P03": ErrorCategory.BUG,  # a file name in the statement is too long
    # XX: corrupted data can be repaired. An internal error may be specific to one statement.
    "XX000": ErrorCategory.BUG,
    "XX001": ErrorCategory.LIMIT,
    "XX002": ErrorCategory.LIMIT,
}

# For codes that are not listed, such as those of a newer server.
_CLASS_CATEGORIES = {
    "08": ErrorCategory.UNAVAILABLE,
    "22": ErrorCategory.INVALID_VALUE,
    "40": ErrorCategory.RETRY,
    "53": ErrorCategory.LIMIT,
    "54": ErrorCategory.INVALID_VALUE,  # a limit of the program, such as the size of an index row
    "57": ErrorCategory.LIMIT,
    "58": ErrorCategory.LIMIT,
}

_SCHEMA_CODES = {"42P01", "42703"}


def categorize(error: BaseException) -> ErrorCategory | None:
    """Categorize `error` by all of its causes; return None if none is the database's."""
    return min((found for cause in _causes(error) if (found := _category(cause))), default=None)


def is_unavailable(error: BaseException) -> bool:
    """Return whether `error` is an outage or a limit of the database. The same statement may
    succeed later, so callers wait."""
    return categorize(error) in _TRANSIENT


def is_retryable(error: BaseException) -> bool:
    """Return whether concurrent transactions caused a rollback, so that a retry may succeed."""
    return categorize(error) is ErrorCategory.RETRY


def is_schema_missing(error: BaseException) -> bool:
    """Return whether a table or a column is missing."""
    return any(sqlstate_of(cause) in _SCHEMA_CODES for cause in _causes(error))


async def retry_transaction(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`, a whole transaction; repeat it at once while concurrent transactions make it fail,
    up to MAX_TRANSACTION_ATTEMPTS runs in all."""
    for _ in range(MAX_TRANSACTION_ATTEMPTS - 1):
        try:
            return await work()
        except Exception as error:
            if not is_retryable(error):
                raise
    return await work()


def is_confirmed_rollback(error: BaseException) -> bool:
    """Return whether the server confirmed that the transaction was rolled back. An outage or a
    limit ends the connection, and the outcome of a COMMIT is unknown."""
    answered = any(sqlstate_of(cause) for cause in _causes(error))
    return answered and categorize(error) not in {ErrorCategory.UNAVAILABLE, ErrorCategory.LIMIT}


def sqlstate_of(error: BaseException) -> str | None:
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else None


def summary(error: BaseException) -> str:
    """Return the type and the message of `error`."""
    message = error_message(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def error_message(error: BaseException) -> str:
    """Return the message of `error`; of a database error, only the first line.

    The other lines repeat the statement. The engine has removed values from it, except from the
    messages of the service's own database functions (RAISE).
    """
    cause: BaseException = error
    if isinstance(error, StatementError) and error.orig is not None:
        cause = error.orig.__cause__ or error.orig
    elif not isinstance(error, asyncpg.PostgresError):
        return str(error)
    return str(cause).partition("\n")[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the error, its causes, and the members of exception groups."""
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
        return ErrorCategory.RETRY  # a migration has changed the columns of a prepared statement
    code = sqlstate_of(error)
    if code is not None:
        return SQLSTATE_CATEGORIES.get(code) or _CLASS_CATEGORIES.get(code[:2], ErrorCategory.BUG)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return ErrorCategory.UNAVAILABLE
    return None


def violated_constraint(error: IntegrityError) -> str | None:
    """Return the name of the violated constraint."""
    cause = error.orig.__cause__ if error.orig else None
    name = getattr(cause, "constraint_name", None)
    return name if isinstance(name, str) else None
