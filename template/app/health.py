"""Health and metrics: is the process making progress, can it do its work, and what has it done?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response, status
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from app.database_errors import summary

Check = Callable[[], Awaitable[None]]

CHECK_TIMEOUT_SECONDS = 3.0


class Unhealthy(Exception):
    """A check failed. The message says what is wrong, for operators."""


class Report(BaseModel):
    """The answer of a health endpoint: overall, and what each check says."""

    status: str
    checks: dict[str, str]


@dataclass(frozen=True)
class _Named:
    name: str
    check: Check


class Health:
    """The checks of this process. Modules add theirs when they start."""

    def __init__(self) -> None:
        self._live: list[_Named] = []
        self._ready: list[_Named] = []

    def add_live(self, name: str, check: Check) -> None:
        """`check` fails when only a restart of the process can help."""
        self._live.append(_Named(name, check))

    def add_ready(self, name: str, check: Check) -> None:
        """`check` fails while the process cannot do its work; it is expected to recover."""
        self._ready.append(_Named(name, check))

    async def live(self) -> Report:
        return await _report(self._live)

    async def ready(self) -> Report:
        return await _report(self._ready)


async def _report(checks: list[_Named]) -> Report:
    results = await asyncio.gather(*(_outcome(named.check) for named in checks))
    by_name = {named.name: result for named, result in zip(checks, results, strict=True)}
    healthy = all(result == "ok" for result in results)
    return Report(status="ok" if healthy else "unavailable", checks=by_name)


async def _outcome(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_SECONDS:g} s"
    except Exception as error:
        # Whatever a check raises is its finding.
        return summary(error)
    return "ok"


router = APIRouter(tags=["operations"])

_responses: dict[int | str, dict[str, object]] = {503: {"model": Report}}


@router.get("/health/live", responses=_responses, summary="Is the process making progress?")
async def live(request: Request, response: Response) -> Report:
    return _answer(await request.app.state.runtime.health.live(), response)


@router.get("/health/ready", responses=_responses, summary="Can the process do its work?")
async def ready(request: Request, response: Response) -> Report:
    return _answer(await request.app.state.runtime.health.ready(), response)


def _answer(report: Report, response: Response) -> Report:
    if report.status != "ok":
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return report


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
