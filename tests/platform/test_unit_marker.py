"""The marker `unit` of the service's tests, and the reason that a failing set-up gives."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app import SERVICE_NAME
from app.platform.health import Health, Unhealthy
from app.platform.http.health_routes import router
from tests import fixtures
from tests.fixtures import eventually, failing_checks

NO_SERVER = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
}


def test_unit_tests_pass_without_any_server() -> None:
    done = run_unit_tests("tests", "-v")

    assert done.returncode == 0, done.stdout
    assert "tests/contracts/test_events.py" in done.stdout
    assert "test_contract.py" not in done.stdout  # over HTTP, on servers


def test_tests_pass_where_caches_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path / "file" / "hypothesis"))
    done = run_unit_tests("tests/platform", "-o", f"cache_dir={tmp_path / 'file' / 'pytest'}")

    assert done.returncode == 0, done.stdout
    assert "PytestCacheWarning" in done.stdout


def run_unit_tests(*options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pytest", "-m", "unit", "-x", *options)
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | NO_SERVER)


def test_servers_of_a_read_only_project_have_a_temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    made = inspect.unwrap(fixtures.servers_folder)(tmp_path_factory)
    temporary = tmp_path_factory.getbasetemp().parent
    assert next(made).parent == temporary / f"{SERVICE_NAME}-servers"
    assert next(made, None) is None


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
