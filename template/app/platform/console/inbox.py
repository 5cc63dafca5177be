"""The inbox: when each consumer has applied an event."""

from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.pages import console_of
from app.platform.http.browser import Fields
from app.platform.kafka import inbox


async def show(request: Request) -> Response:
    """Show when the consumers have applied an event: all of them, or those that read a topic."""
    console, given = console_of(request), Fields.of(request.query_params, "id", "topic")
    context, topic = console.context, given.get("topic")
    consumers = [
        each.name
        for each in context.subscriptions
        if topic is None or topic in each.topics(context.registry)
    ]
    applied = {}
    if "id" in given:
        try:
            event_id = UUID(given["id"].strip())
        except ValueError:
            raise HTTPException(400, f"{given['id']!r} is no event id: it is a UUID") from None
        async with console.database.sessions() as session:
            applied = await inbox.applied_at(session, event_id, consumers)
    hours = context.kafka.inbox_retention_hours
    values = {"given": given, "consumers": consumers, "applied": applied, "hours": hours}
    return console.render(request, "inbox", "Inbox", **values)


ROUTES = [Route("/inbox", show)]
