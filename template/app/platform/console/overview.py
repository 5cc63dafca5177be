"""The first page: processes, consumers, and the servers behind them; and the pages of jobs."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.pages import console_of


async def show(request: Request) -> Response:
    console, processes = console_of(request), request.app.state.processes
    host, port = request.scope["server"]
    await processes.watch(f"http://{host}:{port}")
    checks = await console.health.ready()
    return console.render(
        request,
        "overview",
        "Overview",
        processes=processes,
        checks=checks.checks,
        consumers=[each.name for each in console.service.subscriptions],
        jobs=console.jobs.latest()[:5],
    )


async def show_job(request: Request) -> Response:
    console = console_of(request)
    job = console.jobs.find(request.path_params["id"])
    if job and job.is_running:
        job.refresh()
    return console.render(request, "job", job.title if job else "Action", job=job)


ROUTES = [Route("/", show), Route("/jobs/{id:int}", show_job)]
