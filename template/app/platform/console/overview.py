"""The first page: processes, consumers, and the servers behind them."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import Console, console_of
from app.platform.console.processes import Processes

WIDTH, HEIGHT = 120, 24


async def show(request: Request) -> Response:
    console, processes = console_of(request), request.app.state.processes
    host, port = request.scope["server"]
    await processes.watch(f"http://{host}:{port}")
    checks = await console.health.ready()
    return console.render(
        request,
        "overview.html.j2",
        processes=processes.latest,
        checks=checks.checks,
        consumers=[
            _consumer(console, processes, each.name) for each in console.service.subscriptions
        ],
        outbox=_outbox(processes),
        jobs=console.jobs.latest()[:5],
    )


def _consumer(console: Console, processes: Processes, name: str) -> dict[str, Any]:
    rates = processes.rates(name)
    total = processes.total
    return {
        "name": name,
        "lag": processes.lag(name),
        "rate": rates[-1] if rates else None,
        "line": sparkline(rates),
        "failed": total("kafka_messages_failed_total", consumer=name),
        "retried": total("kafka_messages_retried_total", consumer=name),
        "dead": total("kafka_messages_dead_lettered_total", consumer=name),
        "paused": processes.paused(name),
    }


def _outbox(processes: Processes) -> dict[str, Any] | None:
    if processes.highest("outbox_pending") is None:
        return None
    return {
        "pending": processes.highest("outbox_pending"),
        "age": processes.highest("outbox_oldest_age_seconds"),
        "parked": processes.highest("outbox_parked"),
        "blocked": processes.highest("outbox_held"),
        "line": sparkline(processes.pending()),
    }


def sparkline(values: Sequence[float]) -> str:
    """Return the points of a polyline of 120 by 24 for `values`, evenly spaced; "" for fewer than two."""
    if len(values) < 2:
        return ""
    top, step = max(values) or 1.0, WIDTH / (len(values) - 1)
    return " ".join(
        f"{n * step:.1f},{HEIGHT - 1 - (HEIGHT - 2) * value / top:.1f}"
        for n, value in enumerate(values)
    )


async def show_job(request: Request) -> Response:
    console = console_of(request)
    job: Job | None = console.jobs.find(request.path_params["id"])
    return console.render(request, "job.html.j2", job=job)


ROUTES = [Route("/", show), Route("/jobs/{id:int}", show_job)]
