"""Rebuilds of projections: fill shadow tables from the write side, then swap them in."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID, uuid4

import structlog
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.base import ExecutableOption

from app.platform import tracing
from app.platform.database.engine import DISABLE_TIMEOUTS, Database, table_of
from app.platform.projections.projection import (
    REBUILD_LOCK,
    Identified,
    Projection,
    RebuildRow,
    State,
    lock_projection,
)
from app.platform.projections.shadow_tables import (
    analyze_shadow_tables,
    create_shadow_tables,
    drop_shadow_tables,
    swap_tables,
)

log = structlog.get_logger(__name__)

S_co = TypeVar("S_co", bound=Identified, covariant=True)


class Source(Protocol[S_co]):
    """The present states of all entities of a kind, which a rebuild reads."""

    async def count(self, session: AsyncSession) -> int:
        """Count them, for reporting progress; an estimate will do."""

    async def after(self, session: AsyncSession, id: int, limit: int) -> Sequence[S_co]:
        """Return the next states above `id`, in the order of their ids; none at the end."""


class TableSource(Generic[State]):
    """The rows of the table with the primary key `id`, as states; `options` load what those need."""

    def __init__(
        self,
        id: InstrumentedAttribute[int],
        state: Callable[[Any], State],
        *options: ExecutableOption,
    ) -> None:
        self._id = id
        self._state = state
        self._rows = select(id.class_).order_by(id).options(*options)

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(self._id.class_)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[State]:
        rows = await session.scalars(self._rows.where(self._id > id).limit(limit))
        return [self._state(row) for row in rows]


# The swap locks the live tables exclusively, and new readers queue behind it. So it gives up soon
# and tries again: one long report must not block all readers.
SWAP_LOCK_TIMEOUT = "500ms"
SWAP_RETRY_SECONDS = 0.5
_LOCK_NOT_AVAILABLE = "55P03"

_REBUILDS = table_of(RebuildRow)

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:kind, :name)")


class RebuildRefused(Exception):
    """The rebuild cannot run now; the message says why."""


class RebuildSuperseded(RebuildRefused):
    """The rebuild was abandoned, or another one has started."""


@dataclass(frozen=True)
class Rebuildable(Generic[State]):
    """A projection, and the source of the states that it is rebuilt from."""

    projection: Projection[State]
    source: Source[State]

    def rebuild(self, database: Database, batch: int) -> "Rebuild[State]":
        return Rebuild(database, self.projection, self.source, batch)

    async def abandon(self, database: Database) -> bool:
        """Drop the shadow tables; return False if there was no rebuild to abandon."""
        return await _abandon(database, self.projection)

    async def is_running(self, database: Database) -> bool:
        """Return whether a process rebuilds it now; an interrupted rebuild does not count."""
        try:
            async with exclusive_rebuild(database, self.projection):
                return False
        except RebuildRefused:
            return True


AnyProjection = Rebuildable[Any]  # whatever its states are


@dataclass(frozen=True)
class Progress:
    """The progress of a rebuild. `expected` was counted at its start."""

    done: int
    expected: int
    started_at: datetime

    @property
    def seconds(self) -> float:
        return (datetime.now(UTC) - self.started_at).total_seconds()


class Rebuild(Generic[State]):
    """One rebuild, as a whole (`run`) and in its steps."""

    def __init__(
        self, database: Database, projection: Projection[State], source: Source[State], batch: int
    ) -> None:
        self._database = database
        self._projection = projection
        self._source = source
        self._batch = batch
        self._token = uuid4()
        self._position = 0

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Rebuild from the start, and report after each batch.

        Raises RebuildRefused if another rebuild of the projection runs. If it is interrupted, the
        live tables stay in place, and the shadow tables are dropped.
        """
        name = self._projection.name
        async with exclusive_rebuild(self._database, self._projection):
            try:
                with tracing.span(f"rebuild {name}"):
                    await self.register()
                    while (progress := await self.fill()) is not None:
                        report(progress)
                    with tracing.span(f"swap {name}"):
                        return await self.swap()
            except RebuildSuperseded:
                raise  # the registration belongs to another rebuild
            except BaseException:
                await _abandon(self._database, self._projection, self._token)
                raise

    async def register(self) -> None:
        """Create empty shadow tables, to which projectors write from now on, too."""
        async with self._locked_session() as session:
            await _unregister(session, self._projection)
            await create_shadow_tables(session, self._projection.tables)
            expected = await self._source.count(session)
            session.add(
                RebuildRow(projection=self._projection.name, token=self._token, expected=expected)
            )

    async def fill(self) -> Progress | None:
        """Fill in the next batch; return None if nothing was left. Raises RebuildSuperseded."""
        with tracing.span(f"fill {self._projection.name}") as span:
            progress = await self._fill()
            if progress is not None:
                span.set_attribute("app.projection.done", progress.done)
        return progress

    async def _fill(self) -> Progress | None:
        async with self._database.sessions() as session, session.begin():
            # Read before the lock is taken, so that projectors wait only for the write. A state
            # that is outdated by then is skipped: the shadow already has the newer one.
            states = await self._source.after(session, self._position, self._batch)
            if not states:
                return None
            await lock_projection(session, self._projection)
            progress = await self._advance(session, states[-1].id, len(states))
            await self._projection.write(session, self._projection.shadows, states)
        self._position = states[-1].id
        return progress

    async def swap(self) -> Progress:
        """Replace the live tables by their shadows. Raises RebuildSuperseded."""
        async with self._database.sessions() as session, session.begin():
            await self._registration(session)
            await analyze_shadow_tables(session, self._projection.tables)
        while True:
            try:
                return await self._swap()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
                log.info("swap waits for readers", projection=self._projection.name)
            await asyncio.sleep(SWAP_RETRY_SECONDS)

    async def _swap(self) -> Progress:
        async with self._locked_session() as session:
            row = await self._registration(session)
            await session.execute(text(f"SET LOCAL lock_timeout = '{SWAP_LOCK_TIMEOUT}'"))
            await swap_tables(session, self._projection.tables)
            await session.delete(row)
            return _progress(row)

    async def _advance(self, session: AsyncSession, position: int, count: int) -> Progress:
        advanced = (
            update(_REBUILDS)
            .where(
                _REBUILDS.c.projection == self._projection.name, _REBUILDS.c.token == self._token
            )
            .values(position=position, done=_REBUILDS.c.done + count)
            .returning(_REBUILDS.c.done, _REBUILDS.c.expected, _REBUILDS.c.started_at)
        )
        row = (await session.execute(advanced)).one_or_none()
        if row is None:
            raise self._superseded()
        return Progress(*row)

    async def _registration(self, session: AsyncSession) -> RebuildRow:
        query = select(RebuildRow).where(RebuildRow.projection == self._projection.name)
        fresh = query.execution_options(populate_existing=True)
        row = (await session.scalars(fresh)).one_or_none()
        if row is None or row.token != self._token:
            raise self._superseded()
        return row

    def _superseded(self) -> RebuildSuperseded:
        name = self._projection.name
        return RebuildSuperseded(f"{name}: this rebuild was abandoned, or another one has started")

    @asynccontextmanager
    async def _locked_session(self) -> AsyncIterator[AsyncSession]:
        async with self._database.sessions() as session, session.begin():
            await lock_projection(session, self._projection)
            yield session


@asynccontextmanager
async def exclusive_rebuild(
    database: Database, projection: Projection[State]
) -> AsyncIterator[None]:
    """Exclude other rebuilds of `projection` during the block. Raises RebuildRefused.

    A transaction of its own holds the lock: behind a transaction pooler, a session's lock would
    outlive the block. If the connection is lost, the token in the registration still prevents two
    rebuilds from filling one shadow.
    """
    async with database.engine.connect() as connection, connection.begin():
        await connection.execute(DISABLE_TIMEOUTS)
        keys = {"kind": REBUILD_LOCK, "name": projection.lock}
        if not await connection.scalar(_TRY_LOCK, keys):
            raise RebuildRefused(f"{projection.name} is being rebuilt already")
        yield


async def _abandon(
    database: Database, projection: Projection[State], token: UUID | None = None
) -> bool:
    """Drop the shadow tables; return False if there was no rebuild (with `token`) to abandon."""
    async with database.sessions() as session, session.begin():
        await lock_projection(session, projection)
        query = select(RebuildRow.token).where(RebuildRow.projection == projection.name)
        registered = await session.scalar(query)
        if registered is None or (token is not None and token != registered):
            return False
        await _unregister(session, projection)
        return True


async def _unregister(session: AsyncSession, projection: Projection[State]) -> None:
    """Drop the shadow tables of `projection`, and the registration of the rebuild that fills them."""
    await drop_shadow_tables(session, projection.tables)
    await session.execute(delete(RebuildRow).where(RebuildRow.projection == projection.name))


def _progress(row: RebuildRow) -> Progress:
    return Progress(row.done, row.expected, row.started_at)
