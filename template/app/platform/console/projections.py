"""The read side: how far each projection is behind, and its rebuild."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import console_of, redirect
from app.platform.projections import lag
from app.platform.projections.rebuild import AnyProjection
from app.platform.projections.status import rebuild_states

BATCH = 1000  # rows per transaction, as by default on the command line


async def show(request: Request) -> Response:
    console, context = console_of(request), console_of(request).context
    projectors, entries = console.service.projectors, console.service.projections
    lags = await lag.measure(context.kafka, context.registry, projectors)
    rebuilds = await rebuild_states(entries, console.database)
    rows: list[dict[str, Any]] = [
        {
            "name": entry.projection.name,
            "tables": [table.name for table in entry.projection.tables],
            "lag": lags.get(entry.projection.name),
            "rebuild": rebuilds.get(entry.projection.name),
        }
        for entry in entries
    ]
    return console.render(request, "projections.html.j2", rows=rows)


async def start(request: Request) -> Response:
    """Begin a rebuild, or abandon one."""
    console = console_of(request)
    form = await console.form(request)
    name, action = form.get("name", ""), form.get("action", "")
    entries: dict[str, AnyProjection] = {e.projection.name: e for e in console.service.projections}
    if name not in entries or action not in ("rebuild", "abandon"):
        raise HTTPException(400, f"there is no projection {name!r} to {action or 'change'}")

    async def rebuild(job: Job) -> None:
        run = entries[name].rebuild(console.unlimited, BATCH)
        done = await run.run(lambda found: job.progress(found.done, found.expected))
        job.lines.append(f"rebuilt from {done.done} rows in {done.seconds:.1f} s")

    async def abandon(job: Job) -> None:
        found = await entries[name].abandon(console.unlimited)
        job.lines.append(
            "abandoned; the old one stays in place" if found else "there was no rebuild"
        )

    work = rebuild if action == "rebuild" else abandon
    job = console.jobs.start(f"{action} {name}", request.state.actor, work)
    return redirect(request, f"jobs/{job.id}")


ROUTES = [
    Route("/projections", show),
    Route("/projections/start", start, methods=["POST"]),
]
