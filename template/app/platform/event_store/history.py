"""Routes that only an event store can serve: the history of an entity, and its past states."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from app.platform.errors import NotFound, Unprocessable
from app.platform.event_store.category import Category, S
from app.platform.event_store.store import EventStore, StoredEvent
from app.platform.http.dependencies import SessionDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import DIGITS, AfterVersion, QueryVersion, ResponseModel, UtcDatetime
from app.platform.http.versions import etag


class EventResponse(ResponseModel):
    """An event as the newest version of the service understands it."""

    version: Annotated[int, Field(description="The version after it")]
    type: str
    data: dict[str, Any]
    recorded_at: datetime
    event_id: UUID


R = TypeVar("R", bound=EventResponse)


class History(ResponseModel, Generic[R]):
    """Oldest first. `next_after` is null on the last page."""

    events: list[R]
    next_after: int | None

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{params[0].__name__.removesuffix('EventResponse')}History"


FindStream = Callable[..., Awaitable[int]]


def history_router(
    path: str,
    category: Category[Any, S],
    stream_id: FindStream,
    event_response: type[EventResponse],
    state_response: type[ResponseModel],
    tag: str,
) -> APIRouter:
    """Return the routes `events` and `as-of` below `path`, which names the entity.

    `stream_id` is a dependency that reads the path, and finds the stream. `event_response` chooses
    which metadata to show.
    """
    router = APIRouter(prefix=path, tags=[tag], responses=responses(404, 422, 500, 503))
    _add_events(router, category, stream_id, event_response)
    _add_as_of(router, category, stream_id, state_response)
    return router


def _add_events(
    router: APIRouter,
    category: Category[Any, S],
    stream_id: FindStream,
    event_response: type[EventResponse],
) -> None:
    StreamId = Annotated[int, Depends(stream_id, scope="function")]

    @router.get(
        "/events",
        name=f"list_{category.name}_events",
        summary="List what happened",
        response_model=History[event_response],  # type: ignore[valid-type]  # it is a type
    )
    async def list_events(
        request: Request,
        id: StreamId,
        session: SessionDep,
        after: Annotated[AfterVersion, Query(description="`next_after` of the page before")] = 0,
        limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 100,
    ) -> object:
        """The events above the version `after`."""
        store = EventStore(session, category)
        found = await store.events(id, after, limit + 1)
        if not found and not await store.events(id, limit=1):
            raise NotFound(category.name, _key(request))
        page, more = found[:limit], found[limit:]
        return {
            "events": [_fields(category, stored) for stored in page],
            "next_after": page[-1].version if more else None,
        }


def _add_as_of(
    router: APIRouter,
    category: Category[Any, S],
    stream_id: FindStream,
    state_response: type[ResponseModel],
) -> None:
    StreamId = Annotated[int, Depends(stream_id, scope="function")]

    @router.get(
        "/as-of",
        name=f"get_{category.name}_as_of",
        summary="Get the state of the past",
        response_model=state_response,
        responses=with_headers(200, ETag="The version"),
    )
    async def get_as_of(
        request: Request,
        response: Response,
        id: StreamId,
        session: SessionDep,
        version: Annotated[QueryVersion | None, Query(description="In this version")] = None,
        time: Annotated[
            UtcDatetime | None, Query(description="At that time, with its zone")
        ] = None,
    ) -> object:
        """Computed from the events up to there; 404 if there were none yet. Give either `version`
        or `time`."""
        store = EventStore(session, category)
        if (version is None) == (time is None):
            raise Unprocessable("give either version or time", pointer="/version", location="query")
        reached = version if time is None else await store.version_at(id, time)
        found = await store.load(id, reached)
        if found is None:
            raise NotFound(category.name, f"{_key(request)} in version {reached}")
        response.headers["ETag"] = etag(found.version)
        return found.state


def _key(request: Request) -> str:
    """Return the key of the entity, as the path has it."""
    return "/".join(map(str, request.path_params.values()))


def _fields(category: Category[Any, Any], stored: StoredEvent[Any]) -> dict[str, Any]:
    data = category.type_of(stored.event).adapter.dump_python(stored.event, mode="json")
    return {**stored.metadata, **vars(stored), "data": data}
