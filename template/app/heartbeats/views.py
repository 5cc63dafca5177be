"""The read model `sources`: when each source was last heard of, and which are silent."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field
from sqlalchemy import BigInteger, DateTime, Index, String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from app.heartbeats.events import HeartbeatSent, Source
from app.heartbeats.repository import Heartbeat
from app.platform.database.engine import Base
from app.platform.database.upserts import Row
from app.platform.http.dependencies import RuntimeDep, SessionDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import DIGITS, QueryId, ResponseModel, UtcDatetime
from app.platform.http.versions import etag, wait_for_version
from app.platform.projections.projection import Projection, projector, write_rows
from app.platform.projections.rebuild import AnyProjection, Rebuildable, TableSource


class SourceRow(Base):
    """A source, with its newest heartbeat."""

    __tablename__ = "sources"
    __table_args__ = (Index(None, "sent_at"),)  # for those that are silent

    source: Mapped[str] = mapped_column(String(64), primary_key=True)
    heartbeat_id: Mapped[int] = mapped_column(BigInteger)
    sent_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def _row(heartbeat: Heartbeat) -> Row:
    return {"source": heartbeat.source, "heartbeat_id": heartbeat.id, "sent_at": heartbeat.sent_at}


def _heartbeat(event: HeartbeatSent) -> Heartbeat:
    return Heartbeat(id=event.heartbeat_id, source=event.source, sent_at=event.timestamp)


SOURCES = Projection("sources", [SourceRow], write_rows(_row, version="heartbeat_id"))

SUBSCRIPTIONS = [
    projector(SOURCES, [HeartbeatSent], _heartbeat),
]

PROJECTIONS: list[AnyProjection] = [
    Rebuildable(SOURCES, TableSource(Heartbeat.id, lambda heartbeat: heartbeat)),
]


async def find_source(sessions: async_sessionmaker[AsyncSession], source: str) -> SourceRow | None:
    async with sessions() as session:
        return await session.get(SourceRow, source)


async def silent_sources(
    session: AsyncSession, since: datetime | None, limit: int
) -> Sequence[SourceRow]:
    """Return up to `limit` sources not heard of `since` then, the longest silent first."""
    query = select(SourceRow).order_by(SourceRow.sent_at).limit(limit)
    if since is not None:
        query = query.where(SourceRow.sent_at < since)
    return (await session.scalars(query)).all()


class SourceResponse(ResponseModel):
    """`heartbeat_id` is also the ETag."""

    source: str
    heartbeat_id: int
    sent_at: datetime


class SourceList(ResponseModel):
    """The longest silent first."""

    items: list[SourceResponse]


router = APIRouter(prefix="/sources", tags=["read side"], responses=responses(422, 500, 503))


@router.get(
    "/{source}",
    summary="Get when a source was last heard of",
    responses=responses(404) | with_headers(200, ETag="The id of its newest heartbeat"),
)
async def get_source(
    source: Annotated[Source, Path()],
    runtime: RuntimeDep,
    response: Response,
    min_version: Annotated[QueryId | None, Query(description="The id of a heartbeat")] = None,
) -> SourceResponse:
    """With `min_version` the response waits briefly until that heartbeat of the source is known
    here; then 503 with `Retry-After`. So one reads what one has written."""
    found = await wait_for_version(
        lambda: find_source(runtime.database.sessions, source),
        lambda row: row.heartbeat_id,
        min_version,
        "source",
        source,
    )
    response.headers["ETag"] = etag(found.heartbeat_id)
    return SourceResponse.model_validate(found)


@router.get("", summary="List the sources, the longest silent first")
async def list_sources(
    session: SessionDep,
    silent_since: Annotated[UtcDatetime | None, Query(description="With a time zone")] = None,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 100,
) -> SourceList:
    """With `silent_since`, only sources that were not heard of since."""
    found = await silent_sources(session, silent_since, limit)
    return SourceList(items=[SourceResponse.model_validate(row) for row in found])
