"""The boundary of a request: retries after rollbacks, and responses to unhandled errors."""

import structlog
from opentelemetry.trace import get_current_span
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
from app.platform.http.problems import error_response, problem_response
from app.platform.tracing import fail_span

log = structlog.get_logger(__name__)


class DatabaseAway(Unavailable):
    title = "The database is away"


class DatabaseOutOfDate(Unavailable):
    title = "The database and this version of the service do not fit"


class DatabaseTakesNoWrites(Unavailable):
    problem_type = "database-read-only"
    title = "The database takes no writes at the moment"


class DatabaseLimit(Unavailable):
    title = "The database has reached a limit"


class ConnectionPoolExhausted(Unavailable):
    problem_type = "connection-pool-empty"
    title = "All database connections of this process are in use"


class ConcurrentChanges(Unavailable):
    title = "Too many requests change the same data at once"


_PROBLEMS: dict[ErrorCategory, tuple[type[ServiceError], str]] = {
    ErrorCategory.POOL_EMPTY: (
        ConnectionPoolExhausted,
        "no connection became free in time: try again soon",
    ),
    ErrorCategory.OUT_OF_DATE: (
        DatabaseOutOfDate,
        "a table, a column or a permission is missing: try again later",
    ),
    ErrorCategory.READ_ONLY: (DatabaseTakesNoWrites, "the database is read-only: try again soon"),
    ErrorCategory.LIMIT: (
        DatabaseLimit,
        "the database cannot do this at the moment: try again soon",
    ),
    ErrorCategory.UNAVAILABLE: (
        DatabaseAway,
        "the database does not respond: try again soon",
    ),
    ErrorCategory.RETRY: (ConcurrentChanges, "each attempt met concurrent changes: try again soon"),
    ErrorCategory.CONFLICT: (Conflict, "the request contradicts a concurrent change"),
}


class RequestBoundary:
    """A middleware that retries requests and responds to unhandled errors.

    It retries a request whose transaction was rolled back because of concurrent ones. It responds
    with 503 to outages and limits of the database, with 409 to conflicts in its data, and with 500
    to everything else. The response reveals nothing about the error; the log has the details.

    It runs inside the tracing middleware, so that log and response have the correlation id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        original, messages = dict(scope), _RecordedMessages(receive)
        started = False

        async def send_and_mark_started(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        for attempt in range(1, MAX_TRANSACTION_ATTEMPTS + 1):
            try:
                await self._app(scope, messages, send_and_mark_started)
                return
            except Exception as error:
                if started:  # the response cannot be taken back: the server closes the connection
                    raise
                if attempt == MAX_TRANSACTION_ATTEMPTS or not is_retryable(error):
                    response = _error_response(scope, error)
                    await response(scope, receive, send)
                    if response.status_code >= 500:
                        fail_span(get_current_span(), error)
                    return
                log.info("request retried", attempt=attempt, error=summary(error))
            scope.clear()
            scope.update(original)
            messages.rewind()


class _RecordedMessages:
    """A `receive` that records the messages of a request, so that it can be retried."""

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


def _error_response(scope: Scope, error: Exception) -> Response:
    category = categorize(error)
    if category not in _PROBLEMS:
        log.exception("request failed", exc_info=error)
        detail = "an internal error occurred: report the X-Correlation-Id of this response"
        return problem_response(scope, 500, detail=detail)
    kind, detail = _PROBLEMS[category]
    if category is ErrorCategory.CONFLICT:  # the code should have checked for it
        log.exception(kind.title, exc_info=error)
    else:
        log.warning(kind.title, error=summary(error))
    return error_response(scope, kind(detail))
