"""Health checks, and their routes."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY

from app.platform import health as module
from app.platform.health import Health, Unhealthy
from app.platform.http.health_routes import router


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
async def test_without_checks_the_process_is_healthy(http: AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {}}


async def test_one_failing_check_makes_the_process_unready(
    http: AsyncClient, health: Health
) -> None:
    health.add_readiness_check("database", fine)
    health.add_readiness_check("disk", sick)
    answer = await http.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json() == {
        "status": "unavailable",
        "checks": {"database": "ok", "disk": "Unhealthy: the disk is full"},
    }


async def test_the_last_results_of_readiness_are_exported(
    http: AsyncClient, health: Health
) -> None:
    health.add_readiness_check("disk", sick)
    health.add_readiness_check("light", fine)
    health.add_readiness_check("sound", sick, required=False)
    await http.get("/health/ready")

    def passed(check: str, required: str) -> float | None:
        labels = {"check": check, "required": required}
        return REGISTRY.get_sample_value("readiness_check_passed", labels)

    assert (passed("disk", "true"), passed("light", "true"), passed("sound", "false")) == (0, 1, 0)


async def test_an_optional_check_is_reported_but_does_not_count(
    http: AsyncClient, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPTIONAL_CHECK_TIMEOUT_SECONDS", 0.02)

    async def hangs() -> None:
        await asyncio.sleep(60)

    health.add_readiness_check("database", fine)
    health.add_readiness_check("disk", sick, required=False)
    health.add_readiness_check("kafka", hangs, required=False)
    health.add_readiness_check("cache", fine, required=False)
    async with asyncio.timeout(1):
        answer = await http.get("/health/ready")

    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "checks": {
            "database": "ok",
            "disk": "unavailable (not needed by this process): Unhealthy: the disk is full",
            "kafka": "unavailable (not needed by this process): no answer within 0.02 s",
            "cache": "ok",
        },
    }


async def test_an_unready_process_is_still_alive(http: AsyncClient, health: Health) -> None:
    health.add_readiness_check("disk", sick)

    assert (await http.get("/health/live")).status_code == 200


async def test_a_failing_liveness_check_asks_for_a_restart(
    http: AsyncClient, health: Health
) -> None:
    health.add_liveness_check("loop", sick)

    assert (await http.get("/health/live")).status_code == 503
    assert (await http.get("/health/ready")).status_code == 200


async def test_a_check_that_recovers_makes_the_process_ready(
    http: AsyncClient, health: Health
) -> None:
    findings: list[Exception] = [OSError("away")]

    async def check() -> None:
        if findings:
            raise findings.pop()

    health.add_readiness_check("database", check)

    assert [(await http.get("/health/ready")).status_code for _ in range(2)] == [503, 200]


async def test_any_exception_is_the_result_of_its_check(health: Health) -> None:
    async def broken() -> None:
        raise KeyError

    health.add_readiness_check("broken", broken)

    assert (await health.ready()).checks == {"broken": "KeyError"}


async def test_a_check_that_hangs_times_out(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_SECONDS", 0.02)

    async def hangs() -> None:
        await asyncio.sleep(60)

    health.add_readiness_check("slow", hangs)
    health.add_readiness_check("quick", fine)
    async with asyncio.timeout(1):
        report = await health.ready()

    assert report.checks == {"slow": "no answer within 0.02 s", "quick": "ok"}


async def test_checks_run_concurrently(health: Health) -> None:
    both = asyncio.Barrier(2)

    async def meets_the_other() -> None:
        await both.wait()

    health.add_readiness_check("one", meets_the_other)
    health.add_readiness_check("other", meets_the_other)

    assert (await health.ready()).status == "ok"
