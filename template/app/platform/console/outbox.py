"""The outbox: events that wait, and those that cannot be sent, with their reasons."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

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
    """The parked events that a page is about: all, those of a topic or a key, or one.

    With `blocked`, they are those that wait behind another one. Ids are above `after`.
    """

    topic: str | None
    key: str | None
    id: int | None
    after: int | None
    blocked: bool

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """Read the query of a URL. Raises HTTPException 400."""
        return cls(
            given.get("topic") or None,
            given.get("key") or None,
            number_in(given, "id"),
            number_in(given, "after"),
            given.get("blocked") == "1",
        )

    @property
    def filter(self) -> ParkedFilter:
        ids = [] if self.id is None else [self.id]
        return ParkedFilter(ids, self.topic, self.key, self.after)

    def url(self, **changes: object) -> str:
        """Return the query of the URL of a page, with `changes`."""
        given = {"topic": self.topic, "key": self.key, "id": self.id, "after": self.after}
        return urlencode({k: v for k, v in (given | changes).items() if v is not None})


async def _parked(console: Console, query: Query) -> tuple[list[ParkedRow], int]:
    """Return the first rows of a query, and the number of those that follow."""
    async with console.database.sessions() as session:
        rows = await store.find_parked(session, query.filter, query.blocked, SHOWN)
        count = await store.count_parked(session, query.filter, query.blocked)
    return rows, max(0, count - len(rows))


async def show(request: Request) -> Response:
    console, query = console_of(request), Query.of(request.query_params)
    stats = await measure(console.database.metrics_probe, COUNT_LIMIT)
    rows, left = await _parked(console, query)
    return console.render(
        request,
        "outbox.html.j2",
        query=query,
        stats=stats,
        limit=COUNT_LIMIT,
        rows=rows,
        left=left,
    )


async def show_one(request: Request) -> Response:
    console = console_of(request)
    id: int = request.path_params["id"]
    async with console.database.sessions() as session:
        rows = await store.find_parked(session, ParkedFilter([id])) if id < MOST_ID else []
    if not rows:
        raise HTTPException(404, f"event {id} is not parked (any more)")
    (row,) = rows
    headers = {name: getattr(row, column) for name, column in HEADER_COLUMNS.items()}
    headers |= row.headers
    body = console.body(row.value)
    return console.render(request, "outbox_event.html.j2", row=row, headers=headers, body=body)


async def show_plan(request: Request) -> Response:
    """Show which events an action would change."""
    console, query = console_of(request), Query.of(request.query_params)
    action = _action(request.query_params.get("action", ""))
    rows, left = await _parked(console, replace(query, blocked=False))
    return console.render(
        request,
        "outbox_plan.html.j2",
        action=action,
        rows=rows,
        left=left,
        ids=" ".join(str(row.id) for row in rows),
    )


async def start(request: Request) -> Response:
    """Change the events that the page of a plan has shown, and no others.

    Like the command, it changes none if one of them is not parked any more.
    """
    console = console_of(request)
    form = await console.form(request)
    action = _action(form.get("action", ""))
    ids = [number_in({"id": text}, "id") or 0 for text in form.get("ids", "").split()]
    if not ids:
        raise HTTPException(400, "no event is selected")
    try:
        async with console.database.sessions() as session:
            await store.select_parked(session, ParkedFilter(ids))
    except store.NotParked as refusal:
        raise HTTPException(409, f"{refusal}: go back, and reload the page") from None

    async def work(job: Job) -> None:
        count = await _ACTIONS[action](console.unlimited.engine, ids)
        where = "moved back into the outbox" if action == "retry" else "deleted"
        job.lines.append(f"{where}: {count}")

    job = console.jobs.start(f"{action} parked events: {len(ids)}", request.state.actor, work)
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
