"""The fault behind an error of the database, and the answer of requests to it."""

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
    DECISIONS,
    MEANINGS,
    DatabaseUnavailable,
    Meaning,
    decide_again,
    is_unavailable,
    meaning_of,
)
from app.platform.http.boundary import RequestBoundary

COMPLETE_CLASSES = ("08", "25", "40", "53", "55", "57", "58", "XX")


class Sqlstate(Exception):
    """As drivers raise them: an error with a code."""

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


def test_every_code_of_the_classes_about_the_server_has_a_meaning() -> None:
    codes = {*known_codes()}

    assert len(codes) > 45
    assert codes - MEANINGS.keys() == set()


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (DatabaseUnavailable("away"), Meaning.AWAY),
        (PoolTimeout("no connection was free"), Meaning.POOL_EMPTY),
        (DisconnectionError("closed"), Meaning.AWAY),
        (DBAPIError("", {}, Exception("closed"), connection_invalidated=True), Meaning.AWAY),
        (asyncpg.CannotConnectNowError("57P03"), Meaning.AWAY),
        (asyncpg.AdminShutdownError("57P01"), Meaning.AWAY),
        (asyncpg.IdleSessionTimeoutError("57P05"), Meaning.AWAY),
        (asyncpg.ConnectionDoesNotExistError("08003"), Meaning.AWAY),
        (asyncpg.ReadOnlySQLTransactionError("25006"), Meaning.READ_ONLY),
        (asyncpg.TooManyConnectionsError("53300"), Meaning.LIMIT),
        (asyncpg.DiskFullError("53100"), Meaning.LIMIT),
        (asyncpg.LockNotAvailableError("55P03"), Meaning.LIMIT),
        (asyncpg.QueryCanceledError("57014"), Meaning.LIMIT),
        (asyncpg.IdleInTransactionSessionTimeoutError("25P03"), Meaning.LIMIT),
        (asyncpg.TransactionTimeoutError("25P04"), Meaning.LIMIT),
        (asyncpg.PostgresIOError("58030"), Meaning.LIMIT),
        (asyncpg.IndexCorruptedError("XX002"), Meaning.LIMIT),
        (Sqlstate("53999"), Meaning.LIMIT),
        (Sqlstate("57P99"), Meaning.LIMIT),
        (asyncpg.UndefinedTableError("42P01"), Meaning.OUT_OF_DATE),
        (asyncpg.UndefinedColumnError("42703"), Meaning.OUT_OF_DATE),
        (asyncpg.InsufficientPrivilegeError("42501"), Meaning.OUT_OF_DATE),
        (asyncpg.DeadlockDetectedError("40P01"), Meaning.RETRY),
        (asyncpg.SerializationError("40001"), Meaning.RETRY),
        (asyncpg.InvalidCachedStatementError("0A000"), Meaning.RETRY),
    ],
)
def test_outages_and_limits_are_recognised_behind_any_layers(
    error: Exception, meaning: Meaning
) -> None:
    for found in (error, wrapped(error), wrapped(error, times=3)):
        assert meaning_of(found) is meaning
        assert is_unavailable(found)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ValueError("wrong"), None),
        (TimeoutError("of a handler's own"), None),
        (IntegrityError("INSERT", {}, Exception("duplicate")), None),
        (asyncpg.UniqueViolationError("23505"), Meaning.CONFLICT),
        (asyncpg.TransactionIntegrityConstraintViolationError("40002"), Meaning.CONFLICT),
        (asyncpg.NotNullViolationError("23502"), Meaning.BUG),
        (asyncpg.InvalidTextRepresentationError("22P02"), Meaning.MESSAGE),
        (asyncpg.FeatureNotSupportedError("0A000"), Meaning.BUG),
        (asyncpg.UndefinedFunctionError("42883"), Meaning.BUG),
        (asyncpg.InFailedSQLTransactionError("25P02"), Meaning.BUG),
        (asyncpg.InternalServerError("XX000"), Meaning.BUG),
        (Sqlstate(""), Meaning.BUG),
        (Sqlstate(None), None),
        (Sqlstate(8001), None),
    ],
)
def test_what_will_not_pass_by_itself_is_no_outage(
    error: Exception, meaning: Meaning | None
) -> None:
    for found in (error, wrapped(error)):
        assert meaning_of(found) is meaning
        assert not is_unavailable(found)


def test_a_connection_lost_for_a_reason_keeps_the_reason() -> None:
    error = DBAPIError("", {}, Sqlstate("25P03"), connection_invalidated=True)
    error.__cause__ = error.orig

    assert meaning_of(error) is Meaning.LIMIT


def test_of_a_group_of_errors_an_outage_decides() -> None:
    assert is_unavailable(ExceptionGroup("lanes", [ValueError(), DatabaseUnavailable("away")]))
    assert not is_unavailable(ExceptionGroup("lanes", [ValueError()]))


def test_causes_that_go_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert not is_unavailable(first)


async def test_a_transaction_is_decided_again_a_limited_number_of_times() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise asyncpg.SerializationError("40001")

    with pytest.raises(asyncpg.SerializationError):
        await decide_again(work)
    assert runs == DECISIONS


async def test_a_lost_connection_is_not_decided_again() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise asyncpg.TransactionResolutionUnknownError("08007")

    with pytest.raises(asyncpg.TransactionResolutionUnknownError):
        await decide_again(work)
    assert runs == 1


async def answer_with(*errors: Exception) -> tuple[Response, list[bytes]]:
    """The answer of a route that raises `errors`, one a call, and then echoes; with each body."""
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


async def test_a_request_is_decided_again_with_its_body() -> None:
    deadlocks = [asyncpg.DeadlockDetectedError("40P01")] * (DECISIONS - 1)
    answer, bodies = await answer_with(*deadlocks)

    assert (answer.status_code, answer.text) == (200, "ada")
    assert bodies == [b"the body"] * DECISIONS


@pytest.mark.parametrize(
    ("error", "status", "problem", "runs"),
    [
        (asyncpg.SerializationError("40001"), 503, "concurrent-changes", DECISIONS),
        (PoolTimeout("none is free"), 503, "connection-pool-empty", 1),
        (asyncpg.ReadOnlySQLTransactionError("25006"), 503, "database-read-only", 1),
        (asyncpg.LockNotAvailableError("55P03"), 503, "database-limit", 1),
        (asyncpg.UndefinedTableError("42P01"), 503, "database-out-of-date", 1),
        (DatabaseUnavailable("away"), 503, "database-away", 1),
        (asyncpg.UniqueViolationError("23505"), 409, "conflict", 1),
    ],
)
async def test_each_meaning_has_an_answer(
    error: Exception, status: int, problem: str, runs: int
) -> None:
    answer, bodies = await answer_with(*[error] * 20)

    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:problem-type:{problem}"
    assert bool(re.fullmatch("[0-9]+", answer.headers.get("Retry-After", ""))) is (status == 503)
    assert len(bodies) == runs


async def test_a_bug_is_answered_with_500_and_no_words_of_it() -> None:
    answer, _ = await answer_with(asyncpg.InternalServerError("a secret"))

    assert answer.status_code == 500
    assert "secret" not in answer.text
