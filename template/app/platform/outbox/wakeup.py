"""Notifications of commits, from processes without a relay to those with one.

They are sent by NOTIFY in a transaction of its own: in the writers' transactions it would make their
commits wait for each other. One may be lost, because relays also poll.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.background import in_background
from app.platform.backoff import Backoff
from app.platform.database.errors import is_unavailable, summary
from app.platform.runtime import Runtime
from app.platform.service import Role

log = structlog.get_logger(__name__)

CHANNEL = "outbox"
# Commits within this time share a notification.
_MIN_INTERVAL_SECONDS = 0.01
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
async def notifying(engine: AsyncEngine, published: asyncio.Event) -> AsyncIterator[None]:
    """Notify the listeners whenever `published` is set, and clear it."""

    async def notify(connection: asyncpg.Connection) -> None:
        while True:
            await published.wait()
            published.clear()
            await connection.execute(f"NOTIFY {CHANNEL}", timeout=_QUERY_TIMEOUT_SECONDS)
            await asyncio.sleep(_MIN_INTERVAL_SECONDS)

    async with in_background(_keep_working(engine, notify), "outbox-notifier"):
        yield


@asynccontextmanager
async def listening(engine: AsyncEngine, published: asyncio.Event) -> AsyncIterator[None]:
    """Set `published` at each notification of another process.

    It does not work through a transaction pooler, which may give a notification to any client.
    """

    def wake_up(*_notification: object) -> None:
        published.set()

    async def listen(connection: asyncpg.Connection) -> None:
        await connection.add_listener(CHANNEL, wake_up)
        wake_up()  # for notifications before this one listened
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            await connection.execute("SELECT 1", timeout=_QUERY_TIMEOUT_SECONDS)

    async with in_background(_keep_working(engine, listen), "outbox-listener"):
        yield


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
