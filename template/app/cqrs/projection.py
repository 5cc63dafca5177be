"""A projection: tables, and how states are written to them, live and while it is rebuilt.

Whoever writes to a projection, projector or rebuild, first takes its turn: a lock until the end of
the transaction. So writers never deadlock, each sees all that the one before it wrote, and none is
at work while tables are swapped. Batches make up for what could have run side by side.
"""

import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from sqlalchemy import MetaData, Table, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.cqrs.models import RebuildRow
from app.cqrs.states import State

# The first half of the keys of advisory locks; any numbers will do that nobody else takes.
TURN = 0x43515253
REBUILD = 0x43515254

Write = Callable[[AsyncSession, Sequence[Table], Sequence[State]], Awaitable[None]]


@dataclass(frozen=True)
class Projection(Generic[State]):
    """A read model.

    `write` brings `tables`, or others of their shape, to the given states; it skips those that are
    not newer than what it finds, so states may come twice and in any order. The subscription that
    keeps the tables up to date has the same name.
    """

    name: str
    tables: Sequence[Table]
    write: Write[State]

    @property
    def shadows(self) -> list[Table]:
        """The tables that a rebuild fills. They are there only while it is under way."""
        return [shadow_of(table) for table in self.tables]

    @property
    def lock(self) -> int:
        """The second half of the keys of its advisory locks."""
        return zlib.crc32(self.name.encode()) - 2**31  # they are signed


def shadow_of(table: Table) -> Table:
    return table.to_metadata(MetaData(), name=f"{table.name}_shadow")


async def project(
    session: AsyncSession, projection: Projection[State], states: Sequence[State]
) -> None:
    """Write `states` to the read model, and to what a rebuild is about to put in its place.

    That is all the catching up a rebuild needs. It reads the write side after it has registered,
    so what was projected before, it finds there; what is projected after, is written here. In
    between there is nothing, because registering takes a turn.
    """
    if not states:
        return
    await take_turn(session, projection)
    await projection.write(session, projection.tables, states)
    # A statement of its own, begun with the turn: it sees the registration that the turn waited for.
    if await session.get(RebuildRow, projection.name) is not None:
        await projection.write(session, projection.shadows, states)


async def take_turn(session: AsyncSession, projection: Projection[State]) -> None:
    """Be the only one who writes to `projection`, until the transaction ends."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(:kind, :name)"), {"kind": TURN, "name": projection.lock}
    )
