"""The inbox: when each consumer has applied an event."""

from datetime import datetime
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.pages import console_of
from app.platform.kafka import inbox


async def show(request: Request) -> Response:
    """Show when the consumers have applied an event: all of them, or those that read a topic."""
    console, id = console_of(request), request.query_params.get("id", "").strip()
    topic = request.query_params.get("topic", "").strip()
    consumers = [
        each.name
        for each in console.context.subscriptions
        if not topic or topic in each.topics(console.context.registry)
    ]
    rows: dict[str, datetime | None] = {}
    if id:
        try:
            event_id = UUID(id)
        except ValueError:
            raise HTTPException(400, f"{id!r} is no event id: it is a UUID") from None
        async with console.database.sessions() as session:
            applied = await inbox.applied_at(session, event_id, consumers)
        rows = {name: applied.get(name) for name in consumers}
    hours = console.context.kafka.inbox_retention_hours
    return console.render(request, "inbox.html.j2", id=id, topic=topic, rows=rows, hours=hours)


ROUTES = [Route("/inbox", show)]
