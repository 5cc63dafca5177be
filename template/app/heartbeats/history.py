"""Routes that only an event store can serve: the history of a source, and its past counts."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field

from app.heartbeats.events import Source
from app.heartbeats.router import HeartbeatCountResponse
from app.heartbeats.stream import SOURCES, SourceHeard, SourceStore
from app.platform.errors import NotFound, Unprocessable
from app.platform.event_store.store import StoredEvent
from app.platform.http.dependencies import SessionDep
from app.platform.http.problems import responses
from app.platform.http.schemas import DIGITS, AfterVersion, QueryVersion, ResponseModel, UtcDatetime

router = APIRouter(prefix="/heartbeats", tags=["heartbeats"], responses=responses(422, 500, 503))


async def get_source_store(session: SessionDep) -> SourceStore:
    return SourceStore(session)


SourceStoreDep = Annotated[SourceStore, Depends(get_source_store, scope="function")]


class SourceEventResponse(ResponseModel):
    """An event as the newest version of the service understands it; `metadata` is who caused it."""

    version: Annotated[int, Field(description="How many there are up to it")]
    type: Annotated[str, Field(examples=["source.heard"])]
    data: dict[str, Any]
    recorded_at: datetime
    event_id: UUID
    metadata: dict[str, str]

    @classmethod
    def of(cls, stored: StoredEvent[SourceHeard]) -> "SourceEventResponse":
        adapter = SOURCES.type_of(stored.event).adapter
        data = adapter.dump_python(stored.event, mode="json")
        return cls.model_validate({**vars(stored), "data": data})


class SourceHistory(ResponseModel):
    """Oldest first. `next_after` is null on the last page."""

    events: list[SourceEventResponse]
    next_after: int | None


@router.get("/{source}/events", summary="What happened to a source", responses=responses(404))
async def list_source_events(
    source: Annotated[Source, Path()],
    store: SourceStoreDep,
    after: Annotated[AfterVersion, Query(description="`next_after` of the page before")] = 0,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 100,
) -> SourceHistory:
    """The events of the source above the version `after`."""
    found = await store.events(await store.stream_of(source), after, limit + 1)
    page, more = found[:limit], found[limit:]
    return SourceHistory(
        events=[SourceEventResponse.of(stored) for stored in page],
        next_after=page[-1].version if more else None,
    )


@router.get(
    "/{source}/as-of", summary="Get how many heartbeats there were", responses=responses(404)
)
async def get_count_as_of(
    source: Annotated[Source, Path()],
    store: SourceStoreDep,
    version: Annotated[QueryVersion | None, Query(description="The count in this version")] = None,
    time: Annotated[
        UtcDatetime | None, Query(description="The count then, with a time zone")
    ] = None,
) -> HeartbeatCountResponse:
    """Worked out from the events up to there; 404 where there was none yet. Give either `version` or
    `time`."""
    stream_id = await store.stream_of(source)
    if time is not None and version is None:
        found = await store.load(stream_id, await store.version_at(stream_id, time))
    elif version is not None and time is None:
        found = await store.load(stream_id, version)
    else:
        raise Unprocessable("give either version or time", pointer="/version", location="query")
    if found is None:
        raise NotFound("source", source if version is None else f"{source} in version {version}")
    return HeartbeatCountResponse.model_validate(found.state)
