"""The marker `unit` of the service's tests, and the reason that a failing set-up gives."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.platform.health import Health, Unhealthy
from app.platform.http.health_routes import router
from tests.fixtures import eventually, failing_checks

NO_SERVER = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
}


def test_unit_tests_pass_without_any_server() -> None:
    command = (sys.executable, "-m", "pytest", "tests", "-m", "unit", "-v", "-x")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | NO_SERVER)

    assert done.returncode == 0, done.stdout
    assert "tests/contracts/test_events.py" in done.stdout
    assert "test_contract.py" not in done.stdout  # over HTTP, on servers


async def test_a_service_that_is_not_ready_gives_the_reason() -> None:
    async def check() -> None:
        raise Unhealthy("topic shop.order.created is missing")

    app, health = FastAPI(), Health()
    app.include_router(router)
    app.state.runtime = SimpleNamespace(health=health)
    health.add_readiness_check("topics", check)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        with pytest.raises(AssertionError, match=r"shop\.order\.created is missing"):
            await eventually(lambda: failing_checks(http), lambda found: found == {}, seconds=0)
