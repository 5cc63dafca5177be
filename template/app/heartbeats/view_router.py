"""The read model `sources` over HTTP."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from app.heartbeats.events import Source
from app.heartbeats.views import find_source, silent_sources
from app.platform.http.dependencies import RuntimeDep, SessionDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import DIGITS, QueryId, ResponseModel, UtcDatetime
from app.platform.http.versions import etag, wait_for_version

router = APIRouter(prefix="/sources", tags=["read side"], responses=responses(422, 500, 503))


class SourceResponse(ResponseModel):
    """`heartbeat_id` is also the ETag."""

    source: str
    heartbeat_id: int
    sent_at: datetime


class SourceList(ResponseModel):
    """The longest silent first."""

    items: list[SourceResponse]


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
    here; then 503 with `Retry-After`. So a client reads its own writes."""
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
