"""The category of database errors, and the answers to requests."""

import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app.platform.database.errors import (
    MAX_TRANSACTION_ATTEMPTS,
    SQLSTATE_CATEGORIES,
    DatabaseUnavailable,
    ErrorCategory,
    categorize,
    is_unavailable,
    retry_transaction,
)
from app.platform.http.boundary import RequestBoundary

COMPLETE_CLASSES = ("08", "25", "40", "53", "55", "57", "58", "XX")


class Sqlstate(Exception):
    """An error with a code, as drivers raise it."""

    def __init__(self, sqlstate: Any) -> None:
        super().__init__(f"code {sqlstate}")
        self.sqlstate = sqlstate


def wrapped(error: Exception, times: int = 1) -> Exception:
    for number in range(times):
        outer = RuntimeError(f"layer {number}")
        outer.__cause__ = error
        error = outer
    return outer


def known_codes() -> Iterator[str]:
    for kind in vars(asyncpg.exceptions).values():
        code = getattr(kind, "sqlstate", None)
        if isinstance(code, str) and code.startswith(COMPLETE_CLASSES):
            yield code


def test_every_code_about_the_server_has_a_category() -> None:
    codes = {*known_codes()}

    assert len(codes) > 45
    assert codes - SQLSTATE_CATEGORIES.keys() == set()


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (DatabaseUnavailable("away"), ErrorCategory.UNAVAILABLE),
        (PoolTimeout("no connection was free"), ErrorCategory.POOL_EMPTY),
        (DisconnectionError("closed"), ErrorCategory.UNAVAILABLE),
        (
            DBAPIError("", {}, Exception("closed"), connection_invalidated=True),
            ErrorCategory.UNAVAILABLE,
        ),
        (asyncpg.CannotConnectNowError("57P03"), ErrorCategory.UNAVAILABLE),
        (asyncpg.AdminShutdownError("57P01"), ErrorCategory.UNAVAILABLE),
        (asyncpg.IdleSessionTimeoutError("57P05"), ErrorCategory.UNAVAILABLE),
        (asyncpg.ConnectionDoesNotExistError("08003"), ErrorCategory.UNAVAILABLE),
        (asyncpg.ReadOnlySQLTransactionError("25006"), ErrorCategory.READ_ONLY),
        (asyncpg.TooManyConnectionsError("53300"), ErrorCategory.LIMIT),
        (asyncpg.DiskFullError("53100"), ErrorCategory.LIMIT),
        (asyncpg.LockNotAvailableError("55P03"), ErrorCategory.LIMIT),
        (asyncpg.QueryCanceledError("57014"), ErrorCategory.LIMIT),
        (asyncpg.IdleInTransactionSessionTimeoutError("25P03"), ErrorCategory.LIMIT),
        (asyncpg.TransactionTimeoutError("25P04"), ErrorCategory.LIMIT),
        (asyncpg.PostgresIOError("58030"), ErrorCategory.LIMIT),
        (asyncpg.IndexCorruptedError("XX002"), ErrorCategory.LIMIT),
        (Sqlstate("53999"), ErrorCategory.LIMIT),
        (Sqlstate("57P99"), ErrorCategory.LIMIT),
        (asyncpg.UndefinedTableError("42P01"), ErrorCategory.OUT_OF_DATE),
        (asyncpg.UndefinedColumnError("42703"), ErrorCategory.OUT_OF_DATE),
        (asyncpg.InsufficientPrivilegeError("42501"), ErrorCategory.OUT_OF_DATE),
        (asyncpg.DeadlockDetectedError("40P01"), ErrorCategory.RETRY),
        (asyncpg.SerializationError("40001"), ErrorCategory.RETRY),
        (asyncpg.InvalidCachedStatementError("0A000"), ErrorCategory.RETRY),
    ],
)
def test_outages_are_recognised_behind_any_wrapper(
    error: Exception, category: ErrorCategory
) -> None:
    for found in (error, wrapped(error), wrapped(error, times=3)):
        assert categorize(found) is category
        assert is_unavailable(found)


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (ValueError("wrong"), None),
        (TimeoutError("of a handler's own"), None),
        (IntegrityError("INSERT", {}, Exception("duplicate")), None),
        (asyncpg.UniqueViolationError("23505"), ErrorCategory.CONFLICT),
        (asyncpg.TransactionIntegrityConstraintViolationError("40002"), ErrorCategory.CONFLICT),
        (asyncpg.NotNullViolationError("23502"), ErrorCategory.BUG),
        (asyncpg.InvalidTextRepresentationError("22P02"), ErrorCategory.INVALID_VALUE),
        (asyncpg.FeatureNotSupportedError("0A000"), ErrorCategory.BUG),
        (asyncpg.UndefinedFunctionError("42883"), ErrorCategory.BUG),
        (asyncpg.InFailedSQLTransactionError("25P02"), ErrorCategory.BUG),
        (asyncpg.InternalServerError("XX000"), ErrorCategory.BUG),
        (Sqlstate(""), ErrorCategory.BUG),
        (Sqlstate(None), None),
        (Sqlstate(8001), None),
    ],
)
def test_permanent_errors_are_no_outage(error: Exception, category: ErrorCategory | None) -> None:
    for found in (error, wrapped(error)):
        assert categorize(found) is category
        assert not is_unavailable(found)


def test_a_connection_lost_for_a_reason_keeps_the_reason() -> None:
    error = DBAPIError("", {}, Sqlstate("25P03"), connection_invalidated=True)
    error.__cause__ = error.orig

    assert categorize(error) is ErrorCategory.LIMIT


def test_an_outage_decides_about_a_group_of_errors() -> None:
    assert is_unavailable(ExceptionGroup("lanes", [ValueError(), DatabaseUnavailable("away")]))
    assert not is_unavailable(ExceptionGroup("lanes", [ValueError()]))


def test_circular_causes_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert not is_unavailable(first)


async def test_a_transaction_is_retried_a_limited_number_of_times() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise asyncpg.SerializationError("40001")

    with pytest.raises(asyncpg.SerializationError):
        await retry_transaction(work)
    assert runs == MAX_TRANSACTION_ATTEMPTS


async def test_a_lost_connection_is_not_retried_at_once() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise asyncpg.TransactionResolutionUnknownError("08007")

    with pytest.raises(asyncpg.TransactionResolutionUnknownError):
        await retry_transaction(work)
    assert runs == 1


async def answer_with(*errors: Exception) -> tuple[Response, list[bytes]]:
    """Call a route that raises `errors`, one per call, and then echoes; return the answer and bodies."""
    left, bodies = list(errors), []

    async def route(request: Request) -> PlainTextResponse:
        bodies.append(await request.body())
        if left:
            raise left.pop(0)
        return PlainTextResponse(request.path_params["name"])

    app = Starlette(
        routes=[Route("/things/{name}", route, methods=["POST"])],
        middleware=[Middleware(RequestBoundary)],
    )
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.post("/things/ada", content=b"the body"), bodies


async def test_a_request_is_retried_with_its_body() -> None:
    deadlocks = [asyncpg.DeadlockDetectedError("40P01")] * (MAX_TRANSACTION_ATTEMPTS - 1)
    answer, bodies = await answer_with(*deadlocks)

    assert (answer.status_code, answer.text) == (200, "ada")
    assert bodies == [b"the body"] * MAX_TRANSACTION_ATTEMPTS


@pytest.mark.parametrize(
    ("error", "status", "problem", "runs"),
    [
        (asyncpg.SerializationError("40001"), 503, "concurrent-changes", MAX_TRANSACTION_ATTEMPTS),
        (PoolTimeout("none is free"), 503, "connection-pool-empty", 1),
        (asyncpg.ReadOnlySQLTransactionError("25006"), 503, "database-read-only", 1),
        (asyncpg.LockNotAvailableError("55P03"), 503, "database-limit", 1),
        (asyncpg.UndefinedTableError("42P01"), 503, "database-out-of-date", 1),
        (DatabaseUnavailable("away"), 503, "database-away", 1),
        (asyncpg.UniqueViolationError("23505"), 409, "conflict", 1),
    ],
)
async def test_each_category_has_an_answer(
    error: Exception, status: int, problem: str, runs: int
) -> None:
    answer, bodies = await answer_with(*[error] * 20)

    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:problem-type:{problem}"
    assert bool(re.fullmatch("[0-9]+", answer.headers.get("Retry-After", ""))) is (status == 503)
    assert len(bodies) == runs


async def test_a_bug_is_answered_with_500_without_its_message() -> None:
    answer, _ = await answer_with(asyncpg.InternalServerError("a secret"))

    assert answer.status_code == 500
    assert "secret" not in answer.text
