"""Streams of events: who caused what, the state at any version, and what a version changed."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.access import listed
from app.platform.console.pages import MASK, Console, console_of, mask, number_in
from app.platform.event_store.category import Category
from app.platform.event_store.store import EventStore, StreamState
from app.platform.event_store.streams import Streams
from app.platform.event_store.verification import UNREADABLE

SHOWN = 100
MOST_ID = 2**63  # of a bigint

Change = tuple[str, str | None, str | None]
"""A field of the state, with its old and its new value."""


async def show_categories(request: Request) -> Response:
    console = console_of(request)
    rows = []
    async with console.database.sessions() as session:
        for streams in console.service.streams:
            count = await EventStore(session, streams.category).count()
            rows.append({"name": streams.category.name, "count": count})
    return console.render(request, "streams.html.j2", rows=rows)


async def show_streams(request: Request) -> Response:
    console, streams = console_of(request), _streams(request)
    after = number_in(request.query_params, "after") or 0
    async with console.database.sessions() as session:
        store = EventStore(session, streams.category)
        ids = await store.streams(after, SHOWN)
        found = await _load_each(store, ids)
    rows = [(id, state, _summary(console, streams, state)) for id, state in found.items()]
    last = ids[-1] if len(ids) == SHOWN else None
    name = streams.category.name
    return console.render(request, "streams_list.html.j2", name=name, rows=rows, last=last)


async def _load_each(
    store: EventStore[Any, Any], ids: Sequence[int]
) -> dict[int, StreamState[Any] | str]:
    """Return the states of streams, or why one cannot be read."""
    try:
        return {each.state.id: each for each in await store.load_many(ids)}
    except UNREADABLE as error:
        if len(ids) == 1:
            return {ids[0]: str(error)}
    return {id: (await _load_each(store, [id]))[id] for id in ids}


def _summary(console: Console, streams: Streams, found: StreamState[Any] | str) -> str:
    """Return the field of a state that lists show, masked; the problem if there is no state."""
    if isinstance(found, str):
        return found
    name, masked = streams.summary, listed(console.settings.console_masked_fields)
    return MASK if name in masked else str(getattr(found.state, name))


async def show_stream(request: Request) -> Response:
    """Show the events of a stream, the state after one of them, and what that one changed."""
    console, category = console_of(request), _streams(request).category
    id: int = request.path_params["id"]
    version, since = (number_in(request.query_params, name) for name in ("version", "since"))
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
    return console.render(
        request,
        "stream.html.j2",
        name=category.name,
        id=id,
        version=version,
        before=before,
        last=last.version,
        events=[(each, _data(console, category, each.event)) for each in events],
        changes=list(changes(_fields(console, category, old), _fields(console, category, new))),
        shown=SHOWN,
    )


def _fields(
    console: Console, category: Category[Any, Any], found: StreamState[Any] | None
) -> dict[str, Any]:
    """Return the fields of a state, masked; none where there is no state yet."""
    if found is None:
        return {}
    value = category.state_adapter.dump_python(found.state, mode="json")
    fields = mask(value, listed(console.settings.console_masked_fields))
    return fields if isinstance(fields, dict) else {"state": fields}


def _data(console: Console, category: Category[Any, Any], event: Any) -> str:
    adapter = category.type_of(event).adapter
    return console.body(adapter.dump_json(event))


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Yield the fields whose values differ, and those that do not with None as the old value."""
    for name in dict.fromkeys([*old, *new]):
        before, after = _shown(old, name), _shown(new, name)
        yield name, None if before == after else before or "", after


def _shown(state: dict[str, Any], name: str) -> str | None:
    if name not in state:
        return None
    value = state[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _streams(request: Request) -> Streams:
    """Return the streams of the category in the path. Raises HTTPException 404."""
    name = request.path_params["category"]
    found: list[Streams] = [
        each for each in console_of(request).service.streams if each.category.name == name
    ]
    if not found:
        raise HTTPException(404, f"there is no category {name}")
    return found[0]


ROUTES = [
    Route("/streams", show_categories),
    Route("/streams/{category}", show_streams),
    Route("/streams/{category}/{id:int}", show_stream),
]
