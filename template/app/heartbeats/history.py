"""The routes of the event store: the history of a source, and its past counts."""

from typing import Annotated

from fastapi import Path

from app.heartbeats.events import Source
from app.heartbeats.router import HeartbeatCountResponse
from app.heartbeats.stream import SOURCES, STREAM_IDS
from app.platform.errors import NotFound
from app.platform.event_store.history import EventResponse, history_router
from app.platform.http.dependencies import SessionDep


class SourceEventResponse(EventResponse):
    metadata: dict[str, str]


async def get_stream_id(source: Annotated[Source, Path()], session: SessionDep) -> int:
    stream_id = await STREAM_IDS.find(session, source)
    if stream_id is None:
        raise NotFound("source", source)
    return stream_id


router = history_router(
    "/heartbeats/{source}",
    SOURCES,
    get_stream_id,
    SourceEventResponse,
    HeartbeatCountResponse,
    tag="heartbeats",
)
