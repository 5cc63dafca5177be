import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app import health as module
from app.health import Health, Unhealthy, router


async def fine() -> None: ...


async def sick() -> None:
    raise Unhealthy("the disk is full")


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def http(health: Health) -> AsyncIterator[AsyncClient]:
    app = FastAPI()
    app.include_router(router)
    app.state.runtime = SimpleNamespace(health=health)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        yield client


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_without_checks_the_process_is_well(http: AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {}}


async def test_one_failing_check_makes_the_process_unready_and_says_why(
    http: AsyncClient, health: Health
) -> None:
    health.add_ready("database", fine)
    health.add_ready("disk", sick)
    answer = await http.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {
        "status": "unavailable",
        "checks": {"database": "ok", "disk": "Unhealthy: the disk is full"},
    }


async def test_a_process_that_is_not_ready_is_still_alive(
    http: AsyncClient, health: Health
) -> None:
    health.add_ready("disk", sick)

    assert (await http.get("/health/live")).status_code == 200


async def test_a_failing_liveness_check_asks_for_a_restart(
    http: AsyncClient, health: Health
) -> None:
    health.add_live("loop", sick)

    assert (await http.get("/health/live")).status_code == 503
    assert (await http.get("/health/ready")).status_code == 200


async def test_a_check_that_recovers_is_ready_again(http: AsyncClient, health: Health) -> None:
    findings: list[Exception] = [OSError("away")]

    async def check() -> None:
        if findings:
            raise findings.pop()

    health.add_ready("database", check)

    assert [(await http.get("/health/ready")).status_code for _ in range(2)] == [503, 200]


async def test_whatever_a_check_raises_is_its_finding(health: Health) -> None:
    async def broken() -> None:
        raise KeyError

    health.add_ready("broken", broken)

    assert (await health.ready()).checks == {"broken": "KeyError"}


async def test_a_check_without_an_answer_holds_nobody_up(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_SECONDS", 0.02)

    async def hangs() -> None:
        await asyncio.sleep(60)

    health.add_ready("slow", hangs)
    health.add_ready("quick", fine)
    async with asyncio.timeout(1):
        report = await health.ready()

    assert report.checks == {"slow": "no answer within 0.02 s", "quick": "ok"}


async def test_checks_run_side_by_side(health: Health) -> None:
    both = asyncio.Barrier(2)

    async def meets_the_other() -> None:
        await both.wait()

    health.add_ready("one", meets_the_other)
    health.add_ready("other", meets_the_other)

    assert (await health.ready()).status == "ok"
