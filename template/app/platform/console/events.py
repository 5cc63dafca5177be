"""Events: who publishes and who reads them, their schemas, and how those have changed."""

import json
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app import PROJECT_NAME
from app.platform.console.pages import console_of
from app.platform.events import KEPT_SCHEMAS
from app.platform.events.schemas import UnreadableFile, history, problem_of, schema_of
from app.platform.kafka.asyncapi import document
from app.platform.service import installed_version

ROW, MARGIN = 26, 14


async def show(request: Request) -> Response:
    """Show every event that the service publishes or reads, as a picture and a list."""
    console = console_of(request)
    registry = console.context.registry
    consumers = {event.model: console.context.consumers_of(event) for event in registry}
    events = _rows(event.name for event in registry)
    readers = _rows(name for names in consumers.values() for name in names)
    return console.render(
        request,
        "events",
        "Events",
        registry=registry,
        consumers=consumers,
        owner_rows=_rows(event.service or registry.service for event in registry),
        event_rows=events,
        consumer_rows=readers,
        height=MARGIN + ROW * max(len(events), len(readers), 1),
    )


def _rows(names: Iterable[str]) -> dict[str, int]:
    return {name: MARGIN + ROW * number for number, name in enumerate(dict.fromkeys(names))}


async def show_event(request: Request) -> Response:
    """Show an event, its schema, and the differences between its kept versions and the code's."""
    console, name = console_of(request), request.path_params["name"]
    events = [event for event in console.context.registry if event.name == name]
    if not events:
        raise HTTPException(404, f"this service neither publishes nor reads an event {name}")
    try:
        steps = [history(event, KEPT_SCHEMAS) for event in events]
    except UnreadableFile as error:
        raise HTTPException(409, str(error)) from None
    return console.render(
        request,
        "event",
        name,
        context=console.context,
        events=list(zip(events, steps, strict=True)),
        schema=lambda event: json.dumps(schema_of(event), indent=2, ensure_ascii=False),
        problem=lambda event: problem_of(event, KEPT_SCHEMAS),
        folder=KEPT_SCHEMAS,
    )


async def asyncapi(request: Request) -> Response:
    context = console_of(request).context
    info = {"title": PROJECT_NAME, "version": installed_version() or "unknown"}
    return JSONResponse(document(info, context.registry, context.subscriptions, context.kafka))


ROUTES = [
    Route("/events", show),
    Route("/events/{name}", show_event),
    Route("/asyncapi.json", asyncapi),
]
