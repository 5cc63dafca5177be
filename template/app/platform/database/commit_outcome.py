"""The outcome of an in-doubt transaction: one whose answer to COMMIT was lost."""

import asyncio
from enum import StrEnum

import structlog
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from app.platform.backoff import Backoff
from app.platform.database.errors import is_confirmed_rollback, summary

log = structlog.get_logger(__name__)

_CURRENT_TRANSACTION = "SELECT pg_current_xact_id()::text, pg_postmaster_start_time()"
# An id is used again if the server crashed, or a standby took over, before the transaction's log was
# safe. So only the server that assigned the id knows the outcome.
_STATUS = text(
    "SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8)),"
    " pg_postmaster_start_time() = CAST(:started AS timestamptz)"
)
_TERMINATE_BACKEND = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE backend_xid = CAST(CAST(CAST(:xid AS text) AS xid8) AS xid)"
)

# The key of a session's transaction in its `info`: its id and the server's start, once they are read.
_TRANSACTION = "tracked transaction"

_QUERY_TIMEOUT_SECONDS = 3.0
_INITIAL_SECONDS, _LONGEST_SECONDS = 0.02, 0.5
# A transaction that is still in progress after so many polls may never have received COMMIT: its
# connection is terminated, so that there is an outcome.
_POLLS_BEFORE_TERMINATION = 6


class CommitOutcome(StrEnum):
    """The outcome of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


class CommitTracker:
    """The id of a session's transaction, read right before the commit."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._info = session.sync_session.info

    def track(self) -> None:
        """Read the id when the session commits, which takes one round trip."""
        self._info.setdefault(_TRANSACTION, None)

    def is_in_doubt(self, error: BaseException) -> bool:
        """Return whether COMMIT may have been sent before `error` was raised."""
        return self._info.get(_TRANSACTION) is not None and not is_confirmed_rollback(error)

    async def outcome(self, seconds: float) -> CommitOutcome:
        """Ask the server until it knows the outcome, for up to `seconds`."""
        engine = self._session.bind
        assert isinstance(engine, AsyncEngine), "sessions are bound to the service's engine"
        backoff = Backoff(_INITIAL_SECONDS, _LONGEST_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                while (
                    found := await self._query_outcome(
                        engine, backoff.failures >= _POLLS_BEFORE_TERMINATION
                    )
                ) is None:
                    await backoff.pause()
                return found
        except TimeoutError:
            return CommitOutcome.UNKNOWN

    async def _query_outcome(self, engine: AsyncEngine, terminate: bool) -> CommitOutcome | None:
        """Query the outcome once; return None if a later query may find it."""
        try:
            async with asyncio.timeout(_QUERY_TIMEOUT_SECONDS), engine.connect() as connection:
                xid, started = self._info[_TRANSACTION]
                values = {"xid": xid, "started": started}
                status, same_server = (await connection.execute(_STATUS, values)).one()
                if status == "in progress" and same_server and terminate:
                    await connection.execute(_TERMINATE_BACKEND, {"xid": xid})
        except Exception as error:  # whatever the reason, the outcome is unknown
            log.info("query for the outcome of COMMIT failed", error=summary(error))
            return None
        if status == "in progress" and same_server:
            return None
        if status is None or not same_server:
            return CommitOutcome.UNKNOWN
        return CommitOutcome(status)


@event.listens_for(Session, "before_commit")
def _read_id(session: Session) -> None:
    """Read the id of a tracked transaction. One listener for all sessions costs less than one each."""
    if _TRANSACTION in session.info and not session.in_nested_transaction():  # no savepoint's end
        connection = session.connection()
        session.info[_TRANSACTION] = connection.exec_driver_sql(_CURRENT_TRANSACTION).one()
