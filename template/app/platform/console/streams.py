"""Streams of events: who caused what, the state at any version, and what a version changed."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.bodies import MASK
from app.platform.console.pages import console_of
from app.platform.event_store.differences import changes, fields_of
from app.platform.event_store.store import EventStore
from app.platform.event_store.streams import Streams
from app.platform.event_store.verification import UNREADABLE, load_each
from app.platform.http.browser import Fields

SHOWN = 100
MOST_ID = 2**63  # of a bigint


async def show_categories(request: Request) -> Response:
    console = console_of(request)
    async with console.database.sessions() as session:
        counts = {
            each.category.name: await EventStore(session, each.category).count()
            for each in console.service.streams
        }
    return console.render(request, "streams", "Streams", counts=counts)


async def show_streams(request: Request) -> Response:
    console, streams = console_of(request), _streams(request)
    given = Fields.of(request.query_params, "after")
    async with console.database.sessions() as session:
        store = EventStore(session, streams.category)
        ids = await store.streams(given.number("after") or 0, SHOWN)
        found = await load_each(store, ids)
    return console.render(
        request,
        "streams_list",
        f"Streams of {streams.category.name}",
        name=streams.category.name,
        given=given,
        found=found,
        last=ids[-1] if len(ids) == SHOWN else None,
        summary=lambda state: (
            MASK if streams.summary in console.masked else getattr(state, streams.summary)
        ),
    )


async def show_stream(request: Request) -> Response:
    """Show the events of a stream, the state after one of them, and what that one changed."""
    console, category = console_of(request), _streams(request).category
    id: int = request.path_params["id"]
    given = Fields.of(request.query_params, "version", "since")
    version, since = given.number("version"), given.number("since")
    async with console.database.sessions() as session:
        store = EventStore(session, category)
        try:
            last = await store.load(id) if id < MOST_ID else None
            if last is None:
                raise HTTPException(404, f"there is no {category.name} {id}")
            version = min(version or last.version, last.version)
            before = min(version - 1 if since is None else since, last.version)
            events = await store.events(id, max(0, version - SHOWN), SHOWN)
            new = await store.load(id, version)
            old = await store.load(id, before) if before else None
        except UNREADABLE as error:
            raise HTTPException(409, f"its state cannot be computed: {error}") from None
    states = (fields_of(category, found, console.masked) for found in (old, new))
    return console.render(
        request,
        "stream",
        f"{category.name} {id}",
        given={"version": version, "since": before},
        last=last.version,
        events=[event for event in events if event.version <= version],
        data=lambda event: console.body(category.type_of(event).adapter.dump_json(event)),
        changes=changes(*states),
        shown=SHOWN,
    )


def _streams(request: Request) -> Streams:
    """Return the streams of the category in the path. Raises HTTPException 404."""
    name = request.path_params["category"]
    by_name: dict[str, Streams] = {x.category.name: x for x in console_of(request).service.streams}
    if name not in by_name:
        raise HTTPException(404, f"there is no category {name}")
    return by_name[name]


ROUTES = [
    Route("/streams", show_categories),
    Route("/streams/{category}", show_streams),
    Route("/streams/{category}/{id:int}", show_stream),
]
