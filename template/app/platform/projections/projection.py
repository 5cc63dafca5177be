"""Projections: read models of the newest state of each entity."""

import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, String, Table, Uuid, func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base, table_of
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.database.upserts import Row, upsert_newest
from app.platform.events.event import BaseEvent
from app.platform.kafka.subscription import Subscription
from app.platform.projections.shadow_tables import shadow_of


class Identified(Protocol):
    """A state of the entity `id`."""

    @property
    def id(self) -> int: ...


class Versioned(Identified, Protocol):
    """A state of an entity in a `version`; a newer state has a higher one."""

    @property
    def version(self) -> int: ...


State = TypeVar("State", bound=Identified)
VersionedState = TypeVar("VersionedState", bound=Versioned)
Event = TypeVar("Event", bound=BaseEvent)


def newest(states: Sequence[VersionedState]) -> list[VersionedState]:
    """Return the newest state of each entity, by ascending id."""
    found: dict[int, VersionedState] = {}
    for state in states:
        known = found.get(state.id)
        if known is None or state.version > known.version:
            found[state.id] = state
    return [found[id] for id in sorted(found)]


# The first halves of the keys of advisory locks: arbitrary numbers that nothing else uses.
WRITER_LOCK = 0x43515253
REBUILD_LOCK = 0x43515254

Write = Callable[[AsyncSession, Sequence[Table], Sequence[State]], Awaitable[None]]


@dataclass(frozen=True)
class Projection(Generic[State]):
    """A read model.

    `write` brings the tables of `models`, or their shadows, to the given states; it skips states
    that are not newer than the rows, so states may come twice and in any order. The subscription
    that keeps the tables up to date has the same name.
    """

    name: str
    models: Sequence[type[Base]]
    write: Write[State]

    # Both are the same at each call, because statements are cached by their tables.
    @cached_property
    def tables(self) -> list[Table]:
        return [table_of(model) for model in self.models]

    @cached_property
    def shadows(self) -> list[Table]:
        """The tables that a rebuild fills; they exist only while it runs."""
        return [shadow_of(table) for table in self.tables]

    @property
    def lock(self) -> int:
        """The second half of the keys of its advisory locks."""
        return zlib.crc32(self.name.encode()) - 2**31  # they are signed


def write_rows(row: Callable[[State], Row], version: str) -> Write[State]:
    """Return a `write` for one table: each state is a `row`, whose column `version` tells its age."""

    async def write(
        session: AsyncSession, tables: Sequence[Table], states: Sequence[State]
    ) -> None:
        (table,) = tables
        await upsert_newest(session, table, [row(state) for state in states], version)

    return write


def projector(
    projection: Projection[State],
    events: Iterable[type[Event]],
    state: Callable[[Event], State],
) -> Subscription:
    """Return the subscription that keeps `projection` up to date with the states in `events`.

    It takes batches, because a projection has one writer at a time: a batch takes the lock once.
    """

    async def project_batch(batch: Sequence[Event], uow: UnitOfWork) -> None:
        await project(uow.session, projection, [state(event) for event in batch])

    return Subscription(projection.name, dict.fromkeys(events, project_batch), batch=True)


class RebuildRow(Base):
    """A rebuild that runs or was interrupted. While its row exists, projectors write to the shadow
    tables, too."""

    __tablename__ = "projection_rebuilds"

    projection: Mapped[str] = mapped_column(String(100), primary_key=True)
    token: Mapped[UUID] = mapped_column(Uuid)
    position: Mapped[int] = mapped_column(BigInteger, server_default="0")
    done: Mapped[int] = mapped_column(BigInteger, server_default="0")
    expected: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


async def project(
    session: AsyncSession, projection: Projection[State], states: Sequence[State]
) -> None:
    """Write `states` to the read model and, during a rebuild, to its shadow tables.

    So a rebuild misses nothing. It reads the write side after its registration, and finds there all
    that was projected before; all that is projected later is written here. Nothing can come in
    between, because the registration takes the projection's lock, too.
    """
    if not states:
        return
    await lock_projection(session, projection)
    await projection.write(session, projection.tables, states)
    # A new statement with the lock held sees a registration that the lock has waited for.
    if await session.get(RebuildRow, projection.name) is not None:
        await projection.write(session, projection.shadows, states)


async def lock_projection(session: AsyncSession, projection: Projection[State]) -> None:
    """Lock out all other writers of `projection` until the transaction ends."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(:kind, :name)"),
        {"kind": WRITER_LOCK, "name": projection.lock},
    )
