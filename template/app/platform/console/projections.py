"""The read side: how far each projection is behind, and its rebuild."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import console_of
from app.platform.projections import lag
from app.platform.projections.rebuild import AnyProjection
from app.platform.projections.status import rebuild_states

BATCH = 1000  # rows per transaction, as by default on the command line


async def show(request: Request) -> Response:
    console, context = console_of(request), console_of(request).context
    entries = console.service.projections
    return console.render(
        request,
        "projections",
        "Projections",
        projections=[entry.projection for entry in entries],
        lags=await lag.measure(context.kafka, context.registry, console.service.projectors),
        rebuilds=await rebuild_states(entries, console.database),
    )


async def start(request: Request) -> Response:
    """Begin a rebuild, or abandon one."""
    console = console_of(request)
    form = await console.form(request)
    action = form.choice("action", ("rebuild", "abandon"))
    entries: dict[str, AnyProjection] = {e.projection.name: e for e in console.service.projections}
    name = form.choice("projection", entries)

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
    return console.begin(request, f"{action} {name}", work)


ROUTES = [
    Route("/projections", show),
    Route("/projections/start", start, methods=["POST"]),
]
