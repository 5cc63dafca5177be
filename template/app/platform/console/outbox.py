"""The outbox: events that wait, and those that cannot be sent, with their reasons."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import Console, console_of, number_in, redirect
from app.platform.outbox import store
from app.platform.outbox.model import HEADER_COLUMNS, ParkedRow
from app.platform.outbox.monitor import COUNT_LIMIT, measure
from app.platform.outbox.store import ParkedFilter

SHOWN = 200
MOST_ID = 2**63  # of a bigint
_ACTIONS = {"retry": store.retry, "discard": store.discard}


@dataclass(frozen=True)
class Query:
    """The parked events that a page is about: all, or those of a topic or a key, or one."""

    topic: str | None
    key: str | None
    id: int | None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """Read the query of a URL or a form. Raises HTTPException 400."""
        return cls(given.get("topic") or None, given.get("key") or None, number_in(given, "id"))

    @property
    def filter(self) -> ParkedFilter:
        return ParkedFilter([] if self.id is None else [self.id], self.topic, self.key)


async def _parked(
    console: Console, query: Query, limit: int, blocked: bool | None = False
) -> list[ParkedRow]:
    async with console.database.sessions() as session:
        return await store.find_parked(session, query.filter, blocked, limit)


async def show(request: Request) -> Response:
    console, query = console_of(request), Query.of(request.query_params)
    stats = await measure(console.database.metrics_probe, COUNT_LIMIT)
    rows = await _parked(console, query, SHOWN + 1)
    return console.render(
        request,
        "outbox.html.j2",
        query=query,
        stats=stats,
        limit=COUNT_LIMIT,
        rows=rows[:SHOWN],
        has_more=len(rows) > SHOWN,
    )


async def show_one(request: Request) -> Response:
    console = console_of(request)
    query = Query(None, None, request.path_params["id"])
    is_id = query.id is not None and query.id < MOST_ID
    rows = await _parked(console, query, 1, blocked=None) if is_id else []
    if not rows:
        raise HTTPException(404, f"event {query.id} is not parked (any more)")
    (row,) = rows
    headers = {name: getattr(row, column) for name, column in HEADER_COLUMNS.items()}
    headers |= row.headers
    body = console.body(row.value)
    return console.render(request, "outbox_event.html.j2", row=row, headers=headers, body=body)


async def show_plan(request: Request) -> Response:
    """Show which events an action would change."""
    console, query = console_of(request), Query.of(request.query_params)
    action = _action(request.query_params.get("action", ""))
    rows = await _parked(console, query, SHOWN)
    return console.render(
        request,
        "outbox_plan.html.j2",
        query=query,
        action=action,
        rows=rows,
        ids=" ".join(str(row.id) for row in rows),
    )


async def start(request: Request) -> Response:
    """Change the events that the page of a plan has shown, and no others."""
    console = console_of(request)
    form = await console.form(request)
    action = _action(form.get("action", ""))
    ids = [int(id) for id in form.get("ids", "").split() if id.isascii() and id.isdigit()]

    async def work(job: Job) -> None:
        count = await _ACTIONS[action](console.unlimited.engine, ids)
        where = "moved back into the outbox" if action == "retry" else "deleted"
        job.lines.append(f"{where}: {count}")

    title = f"{action} {len(ids)} parked events"
    job = console.jobs.start(title, request.state.actor, work)
    return redirect(request, f"jobs/{job.id}")


def _action(name: str) -> str:
    if name not in _ACTIONS:
        raise HTTPException(400, f"there is no action {name!r}")
    return name


ROUTES = [
    Route("/outbox", show),
    Route("/outbox/plan", show_plan),
    Route("/outbox/start", start, methods=["POST"]),
    Route("/outbox/{id:int}", show_one),
]
