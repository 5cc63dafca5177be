"""The read model `sources`: when something was last heard of each source, and which are silent.

Its table, what it is made of, its projector, and its queries over HTTP.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import Field
from sqlalchemy import BigInteger, DateTime, Index, String, Table, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from app.heartbeats.events import HeartbeatSent, Source
from app.heartbeats.repository import Heartbeat
from app.platform.database.engine import Base
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.errors import NotFound, Unavailable
from app.platform.http.dependencies import RuntimeDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import DIGITS, QueryId, ResponseModel, UtcDatetime
from app.platform.kafka.subscription import Subscription
from app.platform.projections.projection import Projection, newest, project
from app.platform.projections.rebuild import AnyProjection, Rebuildable


class SourceRow(Base):
    """A source, with its newest heartbeat. Only the projector and rebuilds write it."""

    __tablename__ = "sources"
    __table_args__ = (Index(None, "sent_at"),)  # for those that are silent

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    heartbeat_id: Mapped[int] = mapped_column(BigInteger)
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


# What it is made of


@dataclass(frozen=True)
class Beat:
    """A heartbeat, which does not change."""

    id: int
    source: str
    sent_at: datetime
    version: int = 1

    @classmethod
    def of(cls, event: HeartbeatSent) -> "Beat":
        return cls(event.heartbeat_id, event.source, event.timestamp)


class HeartbeatTable:
    """Heartbeats, as HeartbeatRepository keeps them: for rebuilds."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(Heartbeat)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[Beat]:
        query = select(Heartbeat).where(Heartbeat.id > id).order_by(Heartbeat.id).limit(limit)
        return [Beat(row.id, row.source, row.sent_at) for row in await session.scalars(query)]


async def write(session: AsyncSession, tables: Sequence[Table], states: Sequence[Beat]) -> None:
    (sources,) = tables
    last = {beat.source: beat for beat in newest(states)}  # in the order of their ids
    new = insert(sources)
    upsert = new.on_conflict_do_update(
        index_elements=[sources.c.source],
        set_={column.name: new.excluded[column.name] for column in sources.c},
        # Events come twice and in any order: the newest heartbeat wins.
        where=new.excluded.heartbeat_id > sources.c.heartbeat_id,
    )
    await session.execute(upsert, [_row(beat) for beat in last.values()])


def _row(beat: Beat) -> dict[str, object]:
    return {"source": beat.source, "heartbeat_id": beat.id, "sent_at": beat.sent_at}


# Who keeps it up to date, and what it is rebuilt from

SOURCES = Projection("sources", [cast(Table, SourceRow.__table__)], write)


async def project_sources(events: Sequence[HeartbeatSent], uow: UnitOfWork) -> None:
    """A projection has one writer at a time: a batch is one turn."""
    await project(uow.session, SOURCES, [Beat.of(event) for event in events])


SUBSCRIPTIONS = [
    Subscription(SOURCES.name, {HeartbeatSent: project_sources}, batch=True),
]

PROJECTIONS: list[AnyProjection] = [
    Rebuildable(SOURCES, HeartbeatTable()),
]


# Reading it

MIN_VERSION_WAIT_SECONDS = 2.0
POLL_SECONDS = 0.05


class VersionNotReached(Unavailable):
    title = "The version is not there yet"
    problem_type = "not-yet-there"


class SourceQueries:
    """Each read is a short transaction of its own, so that nothing is held while one waits."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def get(self, source: str, min_version: int | None = None) -> SourceRow:
        """The source, with the heartbeat `min_version` or a later one.

        Raises NotFound, and VersionNotReached when that heartbeat does not come.
        """
        deadline = asyncio.get_running_loop().time() + MIN_VERSION_WAIT_SECONDS
        while True:
            async with self._sessions() as session:
                found = await session.get(SourceRow, source)
            if found is not None and found.heartbeat_id >= (min_version or 0):
                return found
            if min_version is None:
                raise NotFound("source", source)
            # Who asks for a heartbeat has seen it, so one that is missing is one that is late.
            if asyncio.get_running_loop().time() >= deadline:
                raise VersionNotReached(f"heartbeat {min_version} of {source} has not come here")
            await asyncio.sleep(POLL_SECONDS)

    async def silent(self, since: datetime | None, limit: int) -> Sequence[SourceRow]:
        """Those of which nothing was heard `since` then, or all; the longest silent first."""
        query = select(SourceRow).order_by(SourceRow.sent_at).limit(limit)
        if since is not None:
            query = query.where(SourceRow.sent_at < since)
        async with self._sessions() as session:
            return (await session.scalars(query)).all()


class SourceResponse(ResponseModel):
    """`heartbeat_id` is what the ETag says, too."""

    source: str
    heartbeat_id: int
    sent_at: datetime


class SourceList(ResponseModel):
    """The longest silent first."""

    items: list[SourceResponse]


async def get_source_queries(runtime: RuntimeDep) -> SourceQueries:
    return SourceQueries(runtime.database.sessions)


SourcesDep = Annotated[SourceQueries, Depends(get_source_queries)]

router = APIRouter(prefix="/sources", tags=["read side"], responses=responses(422, 500, 503))


@router.get(
    "/{source}",
    summary="Get when a source was last heard of",
    responses=responses(404) | with_headers(200, ETag="The id of its newest heartbeat"),
)
async def get_source(
    source: Annotated[Source, Path()],
    sources: SourcesDep,
    response: Response,
    min_version: Annotated[QueryId | None, Query(description="The id of a heartbeat")] = None,
) -> SourceResponse:
    """With `min_version` the answer waits briefly until that heartbeat of the source is known here;
    then 503 with `Retry-After`. So one reads what one has written."""
    found = await sources.get(source, min_version)
    response.headers["ETag"] = f'"{found.heartbeat_id}"'
    return SourceResponse.model_validate(found)


@router.get("", summary="List the sources, the longest silent first")
async def list_sources(
    sources: SourcesDep,
    silent_since: Annotated[UtcDatetime | None, Query(description="With a time zone")] = None,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 100,
) -> SourceList:
    """With `silent_since` those only of which nothing was heard since."""
    found = await sources.silent(silent_since, limit)
    return SourceList(items=[SourceResponse.model_validate(row) for row in found])
