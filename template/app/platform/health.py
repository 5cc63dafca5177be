"""Health checks: is the process making progress, and can it do its work?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import Gauge
from pydantic import BaseModel

from app.platform.database.errors import summary

Check = Callable[[], Awaitable[None]]

CHECK_TIMEOUT_SECONDS = 3.0
# An optional check must not use up the timeout of the probe.
OPTIONAL_CHECK_TIMEOUT_SECONDS = 0.5
# Only what was asked for is known: without probes there are no series.
readiness_checks = Gauge(
    "readiness_check_passed",
    "1 if a check of readiness passed when it was last asked for; all required ones have to",
    ["check", "required"],
)
NOT_NEEDED = "unavailable (not needed by this process): "


class Unhealthy(Exception):
    """A failed check. The message tells operators what is wrong."""


class Report(BaseModel):
    """The results of all checks of a kind, and the overall status."""

    status: str
    checks: dict[str, str]


@dataclass(frozen=True)
class _NamedCheck:
    name: str
    check: Check
    required: bool = True


class Health:
    """The checks of a process. Components add theirs when they start."""

    def __init__(self) -> None:
        self._liveness: list[_NamedCheck] = []
        self._readiness: list[_NamedCheck] = []

    def add_liveness_check(self, name: str, check: Check) -> None:
        """Add a check that fails when only a restart of the process can help."""
        self._liveness.append(_NamedCheck(name, check))

    def add_readiness_check(self, name: str, check: Check, *, required: bool = True) -> None:
        """Add a check that fails while the process cannot do its work, and is expected to recover.

        Without `required`, a failure is reported but leaves the process ready.
        """
        self._readiness.append(_NamedCheck(name, check, required))

    async def live(self) -> Report:
        return await _report(self._liveness)

    async def ready(self) -> Report:
        """Run the checks, and export their results."""
        report = await _report(self._readiness)
        for named in self._readiness:
            passed = report.checks[named.name] == "ok"
            readiness_checks.labels(named.name, str(named.required).lower()).set(passed)
        return report


async def _report(checks: list[_NamedCheck]) -> Report:
    results = await asyncio.gather(*(_result(named) for named in checks))
    found = list(zip(checks, results, strict=True))
    healthy = all(result == "ok" for named, result in found if named.required)
    return Report(
        status="ok" if healthy else "unavailable",
        checks={named.name: _reported(named, result) for named, result in found},
    )


def _reported(named: _NamedCheck, result: str) -> str:
    return result if named.required or result == "ok" else f"{NOT_NEEDED}{result}"


async def _result(named: _NamedCheck) -> str:
    seconds = CHECK_TIMEOUT_SECONDS if named.required else OPTIONAL_CHECK_TIMEOUT_SECONDS
    try:
        async with asyncio.timeout(seconds):
            await named.check()
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except Exception as error:  # any exception is the result of its check
        return summary(error)
    return "ok"
