"""Shadow tables: made like the live ones, filled beside them, and put in their place."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Table, delete, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.base import ExecutableOption

from app.platform.database.engine import DISABLE_TIMEOUTS, Database
from app.platform.projections.projection import (
    REBUILD_LOCK,
    Identified,
    Projection,
    RebuildRow,
    State,
    lock_projection,
    shadow_of,
)

# What PostgreSQL calls the copies of the indexes is its own affair; what tells an index from the
# others of its table is what it is on.
_INDEXES = text(
    "SELECT quote_ident(relname) AS name, concat(indisprimary, indisunique,"
    " regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING ', '')) AS definition"
    " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)

# The roles that may use the live table may use the one that takes its place.
_GRANTS = text(
    "SELECT format('GRANT %s ON %I TO %s', privilege_type, CAST(:shadow AS text),"
    " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)"
    " FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(:table) AND grantee <> relowner"
)


async def create_shadow_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Create empty shadow tables of `tables`, with their indexes and grants."""
    for table in tables:
        shadow = shadow_of(table)
        like = f'CREATE TABLE "{shadow.name}" (LIKE "{table.name}" INCLUDING ALL)'
        await session.execute(text(like))
        names = {"table": table.name, "shadow": shadow.name}
        for grant in (await session.scalars(_GRANTS, names)).all():
            await session.execute(text(grant))


async def analyze_shadow_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Give the planner its statistics before the first query comes."""
    for table in tables:
        await session.execute(text(f'ANALYZE "{shadow_of(table).name}"'))


async def swap_tables(session: AsyncSession, tables: Sequence[Table]) -> None:
    """Put the shadows in the place of `tables`, whose names and index names they take over."""
    for table in tables:
        shadow = shadow_of(table)
        wanted = await _indexes(session, table.name)
        made = await _indexes(session, shadow.name)
        await session.execute(text(f'DROP TABLE "{table.name}"'))
        await session.execute(text(f'ALTER TABLE "{shadow.name}" RENAME TO "{table.name}"'))
        for definition, name in made.items():
            await session.execute(text(f"ALTER INDEX {name} RENAME TO {wanted[definition]}"))


async def _indexes(session: AsyncSession, table: str) -> dict[str, str]:
    rows = await session.execute(_INDEXES, {"table": table})
    return {row.definition: row.name for row in rows}


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


log = structlog.get_logger(__name__)

BATCH = 1000
# The swap needs the old tables for itself. Readers that come meanwhile queue up behind it, so it
# gives up soon and tries again; one long report must not stop all reading.
SWAP_LOCK_TIMEOUT = "500ms"
SWAP_RETRY_SECONDS = 0.5
_LOCK_NOT_AVAILABLE = "55P03"

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:kind, :name)")


class RebuildRefused(Exception):
    """The rebuild cannot be done now. The message says why."""


class RebuildSuperseded(RebuildRefused):
    """This rebuild's registration is gone: it was abandoned, or another one has begun."""


@dataclass(frozen=True)
class Rebuildable(Generic[State]):
    """A projection, and where its states can be read from."""

    projection: Projection[State]
    source: Source[State]

    def rebuild(self, database: Database, batch: int = BATCH) -> "Rebuild[State]":
        return Rebuild(database, self.projection, self.source, batch)

    async def abandon(self, database: Database) -> bool:
        """Throw the shadows away; False when there was no rebuild to abandon."""
        return await _abandon(database, self.projection)

    async def is_running(self, database: Database) -> bool:
        """Whether a process is at it now, rather than that one was interrupted."""
        try:
            async with exclusive_rebuild(database, self.projection):
                return False
        except RebuildRefused:
            return True


AnyProjection = Rebuildable[Any]  # whatever its states are


@dataclass(frozen=True)
class Progress:
    """The progress of a rebuild. `expected` was counted when it began."""

    done: int
    expected: int
    started_at: datetime

    @property
    def seconds(self) -> float:
        return (datetime.now(UTC) - self.started_at).total_seconds()


class Rebuild(Generic[State]):
    """One rebuild, as a whole (`run`) and in its steps."""

    def __init__(
        self,
        database: Database,
        projection: Projection[State],
        source: Source[State],
        batch: int = BATCH,
    ) -> None:
        self._database = database
        self._projection = projection
        self._source = source
        self._batch = batch
        self._token = uuid4()

    async def run(self, report: Callable[[Progress], None]) -> Progress:
        """Rebuild from the beginning, reporting after each batch.

        Raises RebuildRefused when another rebuild of the projection runs. Whatever interrupts it,
        the old tables stay in place, and the shadow is thrown away.
        """
        async with exclusive_rebuild(self._database, self._projection):
            try:
                await self.register()
                while (progress := await self.fill()) is not None:
                    report(progress)
                return await self.swap()
            except RebuildSuperseded:
                raise  # what is registered now is somebody else's
            except BaseException:
                await _abandon(self._database, self._projection, self._token)
                raise

    async def register(self) -> None:
        """Make empty shadows. What is projected from now on, they get, too."""
        async with self._locked_session() as session:
            await drop_shadow_tables(session, self._projection)
            await create_shadow_tables(session, self._projection.tables)
            expected = await self._source.count(session)
            session.add(
                RebuildRow(projection=self._projection.name, token=self._token, expected=expected)
            )

    async def fill(self) -> Progress | None:
        """Fill in the next batch; None when there was nothing left.

        Raises RebuildSuperseded.
        """
        async with self._database.sessions() as session, session.begin():
            # Read before the turn, so that projectors wait for the writing only. A state that is
            # out of date by then is skipped: the newer one is in the shadow already.
            position = (await self._registration(session)).position
            states = await self._source.after(session, position, self._batch)
            if not states:
                return None
            await lock_projection(session, self._projection)
            await self._registration(session)
            await self._projection.write(session, self._projection.shadows, states)
            return await self._advance(session, states[-1].id, len(states))

    async def swap(self) -> Progress:
        """Put the shadows in the place of the live tables.

        Raises RebuildSuperseded.
        """
        async with self._database.sessions() as session, session.begin():
            await self._registration(session)
            await analyze_shadow_tables(session, self._projection.tables)
        while True:
            try:
                return await self._swap()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
                log.info("the swap waits for readers", projection=self._projection.name)
            await asyncio.sleep(SWAP_RETRY_SECONDS)

    async def _swap(self) -> Progress:
        async with self._locked_session() as session:
            row = await self._registration(session)
            await session.execute(text(f"SET LOCAL lock_timeout = '{SWAP_LOCK_TIMEOUT}'"))
            await swap_tables(session, self._projection.tables)
            await session.delete(row)
            return _progress(row)

    async def _advance(self, session: AsyncSession, position: int, count: int) -> Progress:
        row = await self._registration(session)
        row.position = position
        row.done += count
        return _progress(row)

    async def _registration(self, session: AsyncSession) -> RebuildRow:
        query = select(RebuildRow).where(RebuildRow.projection == self._projection.name)
        fresh = query.execution_options(populate_existing=True)
        row = (await session.scalars(fresh)).one_or_none()
        if row is None or row.token != self._token:
            raise RebuildSuperseded(
                f"{self._projection.name}: this rebuild was abandoned, or another one has begun"
            )
        return row

    @asynccontextmanager
    async def _locked_session(self) -> AsyncIterator[AsyncSession]:
        async with self._database.sessions() as session, session.begin():
            await lock_projection(session, self._projection)
            yield session


@asynccontextmanager
async def exclusive_rebuild(
    database: Database, projection: Projection[State]
) -> AsyncIterator[None]:
    """Keep other rebuilds of `projection` away for the length of the block.

    The lock belongs to a transaction that does nothing else, because behind a transaction pooler
    a session's lock would stay behind. Should its connection be lost, the token in the
    registration still keeps a second rebuild from filling the first one's shadow.
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
    """Throw the shadows away; False when there was no rebuild (of that token) to abandon."""
    async with database.sessions() as session, session.begin():
        await lock_projection(session, projection)
        query = select(RebuildRow.token).where(RebuildRow.projection == projection.name)
        registered = await session.scalar(query)
        if registered is None or (token is not None and token != registered):
            return False
        await drop_shadow_tables(session, projection)
        return True


async def drop_shadow_tables(session: AsyncSession, projection: Projection[State]) -> None:
    """Drop the shadow tables of `projection`, and the registration of the rebuild that made them."""
    for shadow in projection.shadows:
        await session.execute(text(f'DROP TABLE IF EXISTS "{shadow.name}"'))
    await session.execute(delete(RebuildRow).where(RebuildRow.projection == projection.name))


def _progress(row: RebuildRow) -> Progress:
    return Progress(row.done, row.expected, row.started_at)
