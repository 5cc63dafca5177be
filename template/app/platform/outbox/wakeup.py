"""Waking up relays: a process that commits events and has no relay tells those that have one.

PostgreSQL carries the word (NOTIFY), in a transaction of its own: in the writers' it would make
their commits wait for each other. It may be lost, as a relay looks by itself, too.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.backoff import Backoff
from app.platform.database.errors import is_unavailable, summary
from app.platform.runtime import Runtime
from app.platform.service import Role

log = structlog.get_logger(__name__)

CHANNEL = "outbox"
# Commits that follow each other closely share one word.
_REST_SECONDS = 0.01
# A connection that was cut off does not say so until it is asked.
_ASK_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_RECONNECT_SECONDS = (1.0, 5.0)

Work = Callable[[asyncpg.Connection], Awaitable[None]]


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Tell relays elsewhere of commits, for the length of the block; one in this process knows."""
    if Role.RELAY in runtime.roles:
        yield
    else:
        async with announcing(runtime.database.engine, runtime.published):
            yield


@asynccontextmanager
async def announcing(engine: AsyncEngine, published: asyncio.Event) -> AsyncIterator[None]:
    """Tell those who listen whenever `published` is set, and clear it."""

    async def announce(connection: asyncpg.Connection) -> None:
        while True:
            await published.wait()
            published.clear()
            await connection.execute(f"NOTIFY {CHANNEL}", timeout=_ANSWER_SECONDS)
            await asyncio.sleep(_REST_SECONDS)

    async with _connected(engine, announce, "outbox-announcer"):
        yield


@asynccontextmanager
async def listening(engine: AsyncEngine, published: asyncio.Event) -> AsyncIterator[None]:
    """Set `published` whenever another process tells of commits.

    Not through a transaction pooler: what is heard there is heard by whoever has the connection.
    """

    def wake_up(*_notification: object) -> None:
        published.set()

    async def listen(connection: asyncpg.Connection) -> None:
        await connection.add_listener(CHANNEL, wake_up)
        wake_up()  # for what was said before
        while True:
            await asyncio.sleep(_ASK_SECONDS)
            await connection.execute("SELECT 1", timeout=_ANSWER_SECONDS)

    async with _connected(engine, listen, "outbox-listener"):
        yield


@asynccontextmanager
async def _connected(engine: AsyncEngine, work: Work, name: str) -> AsyncIterator[None]:
    """Do `work` beside the block, on a connection of its own, and on the next one if that ends."""
    task = asyncio.create_task(_go_on(engine, work), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _go_on(engine: AsyncEngine, work: Work) -> None:
    told, backoff = "", Backoff(*_RECONNECT_SECONDS, jitter=0.5)
    while True:
        try:
            async with engine.connect() as pooled:
                connection = (await pooled.get_raw_connection()).driver_connection
                assert connection is not None
                backoff.reset()
                try:
                    await work(connection)
                finally:
                    await pooled.invalidate()  # nobody else shall get one that listens
        except Exception as error:  # relays look by themselves meanwhile
            away = is_unavailable(error) or isinstance(error, OSError | asyncpg.InterfaceError)
            level, reason = log.info if away else log.exception, summary(error)
            if reason != told:
                level("relays are not woken up, and poll", reason=reason)
            told = reason
        await backoff.pause()
