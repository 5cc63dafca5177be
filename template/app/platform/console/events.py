"""Events: who publishes and who reads them, as a picture and a list, with their schemas."""

import json
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.platform.console.pages import Console, console_of
from app.platform.events.event import EventType
from app.platform.kafka.asyncapi import document

ROW, MARGIN = 26, 14


@dataclass(frozen=True)
class Flow:
    """An event: its topic, the service that owns it, and the consumers here that read it."""

    event: EventType
    topic: str
    owner: str
    is_own: bool
    consumers: list[str]


def flows(console: Console) -> list[Flow]:
    """Return every event that the service publishes or reads."""
    registry = console.context.registry
    return [
        Flow(
            event,
            registry.topic(event.model),
            event.service or registry.service,
            event.service is None,
            [
                each.name
                for each in console.context.subscriptions
                if event.model in each.handlers or event.model in each.tombstones
            ],
        )
        for event in registry
    ]


async def show(request: Request) -> Response:
    console = console_of(request)
    found = flows(console)
    consumers = list(dict.fromkeys(name for flow in found for name in flow.consumers))
    owners = list(dict.fromkeys(flow.owner for flow in found))
    return console.render(
        request,
        "events.html.j2",
        flows=found,
        owner_rows=_rows(owners),
        event_rows=_rows([flow.event.name for flow in found]),
        consumer_rows=_rows(consumers),
        height=MARGIN + ROW * max(len(found), len(consumers), 1),
    )


def _rows(names: list[str]) -> dict[str, int]:
    return {name: MARGIN + ROW * number for number, name in enumerate(names)}


async def show_event(request: Request) -> Response:
    console, name = console_of(request), request.path_params["name"]
    found = [flow for flow in flows(console) if flow.event.name == name]
    if not found:
        raise HTTPException(404, f"this service neither publishes nor reads an event {name}")
    schemas = [
        json.dumps(flow.event.model.model_json_schema(), indent=2, ensure_ascii=False)
        for flow in found
    ]
    pairs = list(zip(found, schemas, strict=True))
    return console.render(request, "event.html.j2", name=name, pairs=pairs)


async def asyncapi(request: Request) -> Response:
    console = console_of(request)
    context = console.context
    info = {"title": console.title, "version": console.version}
    return JSONResponse(document(info, context.registry, context.subscriptions, context.kafka))


ROUTES = [
    Route("/events", show),
    Route("/events/{name}", show_event),
    Route("/asyncapi.json", asyncapi),
]
