"""Health and metrics: is the process making progress, can it do its work, and what has it done?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response, status
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from app.platform.database.errors import summary

Check = Callable[[], Awaitable[None]]

CHECK_TIMEOUT_SECONDS = 3.0
# A check that does not count must not use up the patience of the probe.
INFORMATION_TIMEOUT_SECONDS = 0.5
NOT_NEEDED = "unavailable (not needed by this process): "


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
    needed: bool = True


class Health:
    """The checks of this process. Modules add theirs when they start."""

    def __init__(self) -> None:
        self._live: list[_Named] = []
        self._ready: list[_Named] = []

    def add_live(self, name: str, check: Check) -> None:
        """`check` fails when only a restart of the process can help."""
        self._live.append(_Named(name, check))

    def add_ready(self, name: str, check: Check, *, needed: bool = True) -> None:
        """Add a check that fails while the process cannot do its work; it is expected to recover.

        A check of something that this process does not need is reported, but does not count.
        """
        self._ready.append(_Named(name, check, needed))

    async def live(self) -> Report:
        return await _report(self._live)

    async def ready(self) -> Report:
        return await _report(self._ready)


async def _report(checks: list[_Named]) -> Report:
    results = await asyncio.gather(*(_outcome(named) for named in checks))
    found = list(zip(checks, results, strict=True))
    healthy = all(result == "ok" for named, result in found if named.needed)
    return Report(
        status="ok" if healthy else "unavailable",
        checks={named.name: _reported(named, result) for named, result in found},
    )


def _reported(named: _Named, result: str) -> str:
    return result if named.needed or result == "ok" else f"{NOT_NEEDED}{result}"


async def _outcome(named: _Named) -> str:
    seconds = CHECK_TIMEOUT_SECONDS if named.needed else INFORMATION_TIMEOUT_SECONDS
    try:
        async with asyncio.timeout(seconds):
            await named.check()
    except TimeoutError:
        return f"no answer within {seconds:g} s"
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
