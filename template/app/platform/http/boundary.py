"""The boundary of a request: deciding it again, and answering what nothing else has caught."""

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.platform.database.errors import (
    MAX_TRANSACTION_ATTEMPTS,
    ErrorCategory,
    categorize,
    is_retryable,
    summary,
)
from app.platform.errors import Conflict, ServiceError, Unavailable
from app.platform.http.problems import problem_response, type_of

log = structlog.get_logger(__name__)


class DatabaseAway(Unavailable):
    title = "The database is away"


class DatabaseOutOfDate(Unavailable):
    title = "The database and this version of the service do not fit"


class DatabaseReadOnly(Unavailable):
    title = "The database takes no writes at the moment"


class DatabaseLimit(Unavailable):
    title = "The database has reached a limit"


class ConnectionPoolEmpty(Unavailable):
    title = "All database connections of this process are in use"


class ConcurrentChanges(Unavailable):
    title = "Too many requests change the same data at once"


_ANSWERS: dict[ErrorCategory, tuple[type[ServiceError], str]] = {
    ErrorCategory.POOL_EMPTY: (
        ConnectionPoolEmpty,
        "no connection became free in time: try again soon",
    ),
    ErrorCategory.OUT_OF_DATE: (
        DatabaseOutOfDate,
        "a table, a column or a permission is missing: try again later",
    ),
    ErrorCategory.READ_ONLY: (DatabaseReadOnly, "the database only reads: try again soon"),
    ErrorCategory.LIMIT: (
        DatabaseLimit,
        "the database cannot do this at the moment: try again soon",
    ),
    ErrorCategory.UNAVAILABLE: (DatabaseAway, "the database does not answer: try again soon"),
    ErrorCategory.RETRY: (
        ConcurrentChanges,
        "each attempt met the changes of others: try again soon",
    ),
    ErrorCategory.CONFLICT: (Conflict, "the request contradicts what was written meanwhile"),
}


class RequestBoundary:
    """Runs a request again whose transaction was rolled back because of concurrent ones, and answers
    what nothing else has caught: 503 for outages and limits of the database, 409 for conflicts in
    its data, 500 otherwise.

    It runs inside the tracing middleware, so that log and answer have the correlation id. The
    answer says nothing about the error; the log has all of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        original, received = dict(scope), _Received(receive)
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        for decision in range(1, MAX_TRANSACTION_ATTEMPTS + 1):
            try:
                await self._app(scope, received, watching)
                return
            except Exception as error:
                if started:  # the answer cannot be taken back: the server cuts the connection
                    raise
                if decision == MAX_TRANSACTION_ATTEMPTS or not is_retryable(error):
                    await _answer(scope, error)(scope, receive, send)
                    return
                log.info("request decided again", decision=decision, error=summary(error))
            scope.clear()
            scope.update(original)
            received.rewind()


class _Received:
    """The received messages of a request, kept for running it again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._position = 0

    async def __call__(self) -> Message:
        if self._position == len(self._messages):
            self._messages.append(await self._receive())
        self._position += 1
        return self._messages[self._position - 1]

    def rewind(self) -> None:
        self._position = 0


def _answer(scope: Scope, error: Exception) -> Response:
    meaning = categorize(error)
    if meaning not in _ANSWERS:
        log.exception("request failed", exc_info=error)
        detail = "something went wrong here; the logs tell what, by the correlation id"
        return problem_response(scope, 500, detail=detail)
    kind, detail = _ANSWERS[meaning]
    if meaning is ErrorCategory.CONFLICT:  # a service should have found out before
        log.exception(kind.title, exc_info=error)
    else:
        log.warning(kind.title, error=summary(error))
    known = kind(detail)
    return problem_response(
        scope,
        known.status,
        title=known.title,
        detail=detail,
        type=type_of(known),
        headers=known.headers,
    )
