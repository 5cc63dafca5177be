"""The state of rebuilds, for the command line and the console."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select

from app.platform.database.engine import Database
from app.platform.projections.projection import RebuildRow
from app.platform.projections.rebuild import Rebuildable


class RebuildState(NamedTuple):
    """A rebuild that has begun: its progress in rows, and whether a process still works on it."""

    done: int
    expected: int
    is_running: bool


async def rebuild_states(
    projections: Sequence[Rebuildable[Any]], database: Database
) -> dict[str, RebuildState]:
    """Return the rebuilds that have begun and not ended, by the names of their projections."""
    async with database.sessions() as session:
        rows = {row.projection: row for row in await session.scalars(select(RebuildRow))}
    return {
        name: RebuildState(row.done, row.expected, await entry.is_running(database))
        for entry in projections
        if (row := rows.get(name := entry.projection.name)) is not None
    }
