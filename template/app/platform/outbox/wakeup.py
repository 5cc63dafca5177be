"""Notifications of commits, from processes without a relay to those with one.

They are sent by NOTIFY in a transaction of its own: in the writers' transactions it would make their
commits wait for each other. They name the buckets with new rows. One may be lost, because relays also
look for rows themselves.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.background import WakeUp, in_background
from app.platform.backoff import Backoff
from app.platform.database.errors import is_unavailable, summary
from app.platform.runtime import Runtime
from app.platform.service import Role

log = structlog.get_logger(__name__)

CHANNEL = "outbox"
# If the server crashes, its connections end, and listeners look for rows again: a notification need not
# wait for the disk. Without arguments, it is a single message: a pooler may give the second one of a
# prepared statement to another connection.
_NOTIFY = (
    "SELECT set_config('synchronous_commit', 'off', true), pg_notify('{channel}', '{payload}')"
)
_MAX_PAYLOAD = 7_999
# The rest after a notification, as a multiple of the time that it took: the busier the process or the
# database, the more commits share one.
_REST_PER_NOTIFICATION_TIME = 3
_MIN_REST_SECONDS = 0.001
_MAX_REST_SECONDS = 0.01
# A connection that was cut is only noticed by a query.
_HEARTBEAT_SECONDS = 5.0
_QUERY_TIMEOUT_SECONDS = 5.0
_RECONNECT_BACKOFF = (1.0, 5.0)

Work = Callable[[asyncpg.Connection], Awaitable[None]]


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Notify other processes' relays during the block; one in this process needs no notification."""
    if Role.RELAY in runtime.roles:
        yield
    else:
        async with notifying(runtime.database.engine, runtime.published):
            yield


@asynccontextmanager
async def notifying(engine: AsyncEngine, published: WakeUp) -> AsyncIterator[None]:
    """Notify the listeners of what `published` names."""

    async def notify(connection: asyncpg.Connection) -> None:
        while True:
            await published.wait()
            started = time.perf_counter()
            statement = _NOTIFY.format(channel=CHANNEL, payload=_payload(published.take()))
            await connection.execute(statement, timeout=_QUERY_TIMEOUT_SECONDS)
            rest = _REST_PER_NOTIFICATION_TIME * (time.perf_counter() - started)
            await asyncio.sleep(min(max(rest, _MIN_REST_SECONDS), _MAX_REST_SECONDS))

    async with in_background(_keep_working(engine, notify), "outbox-notifier"):
        yield


@asynccontextmanager
async def listening(engine: AsyncEngine, published: WakeUp) -> AsyncIterator[None]:
    """Set `published` at each notification of another process, for the buckets that it names.

    It does not work through a transaction pooler, which may give a notification to any client.
    """

    def wake_up(*notification: object) -> None:
        buckets = _buckets(str(notification[-1]))
        if buckets:
            published.name(buckets)
        else:
            published.set()

    async def listen(connection: asyncpg.Connection) -> None:
        await connection.add_listener(CHANNEL, wake_up)
        published.set()  # for notifications before this one listened
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            await connection.execute("SELECT 1", timeout=_QUERY_TIMEOUT_SECONDS)

    async with in_background(_keep_working(engine, listen), "outbox-listener"):
        yield


def _payload(buckets: Set[int] | None) -> str:
    named = ",".join(map(str, sorted(buckets or ())))
    return named if len(named) <= _MAX_PAYLOAD else ""


def _buckets(payload: str) -> set[int]:
    """Return the buckets that a notification names; none if it names no buckets."""
    numbers = payload.split(",")
    return {int(number) for number in numbers} if all(map(str.isdecimal, numbers)) else set()


async def _keep_working(engine: AsyncEngine, work: Work) -> None:
    """Do `work` on a connection of its own, and on a new one if that fails."""
    reported, backoff = "", Backoff(*_RECONNECT_BACKOFF, jitter=0.5)
    while True:
        try:
            async with engine.connect() as pooled:
                connection = (await pooled.get_raw_connection()).driver_connection
                assert connection is not None
                backoff.reset()
                try:
                    await work(connection)
                finally:
                    await pooled.invalidate()  # a listening connection must not return to the pool
        except Exception as error:  # relays poll meanwhile
            expected = is_unavailable(error) or isinstance(error, OSError | asyncpg.InterfaceError)
            level, reason = log.info if expected else log.exception, summary(error)
            if reason != reported:
                level("outbox notifications interrupted, relays poll", reason=reason)
            reported = reason
        await backoff.pause()
