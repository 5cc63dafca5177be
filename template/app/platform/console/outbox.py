"""The outbox: events that wait, and those that cannot be sent, with their reasons."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import Console, console_of
from app.platform.http.browser import Fields
from app.platform.outbox import store
from app.platform.outbox.model import ParkedRow
from app.platform.outbox.monitor import COUNT_LIMIT, measure
from app.platform.outbox.store import ParkedFilter

SHOWN = 200
MOST_ID = 2**63  # of a bigint
_ACTIONS = {
    "retry": (store.retry, "moved back into the outbox"),
    "discard": (store.discard, "deleted"),
}


def _fields(request: Request) -> Fields:
    """Read which parked events a page is about. With `blocked`, they wait behind another one."""
    return Fields.of(request.query_params, "topic", "key", "id", "after", "blocked", "action")


async def _parked(
    console: Console, given: Fields, blocked: bool = False
) -> tuple[list[ParkedRow], int]:
    """Return the first rows of a query, and the number of those that follow."""
    ids = [] if (id := given.number("id")) is None else [id]
    criteria = ParkedFilter(ids, given.get("topic"), given.get("key"), given.number("after"))
    async with console.database.sessions() as session:
        rows = await store.find_parked(session, criteria, blocked, SHOWN)
        count = await store.count_parked(session, criteria, blocked)
    return rows, max(0, count - len(rows))


async def show(request: Request) -> Response:
    console, given = console_of(request), _fields(request)
    stats = await measure(console.database.metrics_probe, COUNT_LIMIT)
    rows, left = await _parked(console, given, "blocked" in given)
    values = {"given": given, "stats": stats, "limit": COUNT_LIMIT, "rows": rows, "left": left}
    return console.render(request, "outbox", "Outbox", **values)


async def show_one(request: Request) -> Response:
    console = console_of(request)
    id: int = request.path_params["id"]
    async with console.database.sessions() as session:
        rows = await store.find_parked(session, ParkedFilter([id])) if id < MOST_ID else []
    if not rows:
        raise HTTPException(404, f"event {id} is not parked (any more)")
    (row,) = rows
    values = {"row": row, "body": console.body(row.value), "given": Fields(id=str(id))}
    return console.render(request, "outbox_event", f"Parked event {id}", **values)


async def show_plan(request: Request) -> Response:
    """Show which events an action would change."""
    console, given = console_of(request), _fields(request)
    action = given.choice("action", _ACTIONS)
    rows, left = await _parked(console, given)
    title = f"{action.capitalize()} parked events"
    return console.render(request, "outbox_plan", title, action=action, rows=rows, left=left)


async def start(request: Request) -> Response:
    """Change the events that the page of a plan has shown, and no others.

    Like the command, it changes none if one of them is not parked any more.
    """
    console = console_of(request)
    form = await console.form(request)
    action = form.choice("action", _ACTIONS)
    change, changed = _ACTIONS[action]
    ids = [Fields(id=text).number("id") or 0 for text in form.get("ids", "").split()]
    if not ids:
        raise HTTPException(400, "no event is selected")
    try:
        async with console.database.sessions() as session:
            await store.select_parked(session, ParkedFilter(ids))
    except store.NotParked as refusal:
        raise HTTPException(409, f"{refusal}: go back, and reload the page") from None

    async def work(job: Job) -> None:
        job.lines.append(f"{changed}: {await change(console.unlimited.engine, ids)}")

    return console.begin(request, f"{action} parked events: {len(ids)}", work)


ROUTES = [
    Route("/outbox", show),
    Route("/outbox/plan", show_plan),
    Route("/outbox/start", start, methods=["POST"]),
    Route("/outbox/{id:int}", show_one),
]
