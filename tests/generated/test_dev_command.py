"""`app dev` killed without warning: the next run finds what was left, and stops all of it.

And a server of its own killed: it does not go on without.
"""

import os
import signal
import subprocess
import time

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service
from tests.generated.test_round_trip import processes_in
from tests.shell import environment

SECONDS = 10
START_SECONDS = 60

# One run of `app dev` at a time in the folder of a service.
pytestmark = pytest.mark.xdist_group(matrix.codes()[0].code)


def test_a_run_cleans_up_after_a_killed_one(base: Service) -> None:
    with demo.running_service(base.path, "--fresh", keep=True) as (_, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(SECONDS)
    assert processes_in(base.path) != [], "servers outlive a kill of what started them"
    assert (base.path / ".dev" / "servers.json").exists(), "as does servers.json"
    assert "start `uv run app dev` in this folder, or set DATABASE_URL" in refusal(base, "db")
    with demo.running_service(base.path) as (address, _):
        demo.round_trip(address, demo.log_tail(base.path), demo.round_trip_of(base.path))
        lines = (base.path / "dev.log").read_text().splitlines()
        assert "  Try it:" in lines, "addresses are printed line by line"
        assert any("here was killed: its servers were stopped" in line for line in lines)
        assert f"  API documentation  {address}/docs" in lines
        assert f"  Events             {address}/asyncapi" in lines
        assert demo.call(f"{address}/asyncapi.json")[1]["channels"]
        assert not any("Context impl" in line or "models without" in line for line in lines)
        assert "0 errors" in run_command(base, "doctor").stdout
    deadline = time.monotonic() + SECONDS
    while processes_in(base.path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(base.path) == []


def refusal(service: Service, group: str) -> str:
    """Return the error of a command of `group` without servers."""
    command = {"db": ("db", "upgrade"), "topics": ("topics", "list")}[group]
    result = run_command(service, *command)
    assert result.returncode == 1, result.stdout
    return result.stderr


def run_command(service: Service, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("uv", "run", "--no-sync", "app", *command),
        cwd=service.path,
        env=environment("DATABASE_URL|KAFKA_"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def test_repeated_signals_change_nothing(base: Service) -> None:
    with demo.running_service(base.path) as (_, process):
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
    assert process.returncode == 0


def test_a_command_without_servers_says_what_to_start(base: Service) -> None:
    output = refusal(base, "topics")
    assert "start `uv run app dev` in this folder, or set KAFKA_BOOTSTRAP_SERVERS" in output
    assert "using the servers" not in output


@pytest.mark.parametrize(
    ("server", "identity"),
    [("Apache Kafka", "kafka/broker-1/server.pid"), ("PostgreSQL", "postgres/server.pid")],
)
def test_it_ends_with_a_server_and_names_it(base: Service, server: str, identity: str) -> None:
    with demo.running_service(base.path, keep=True) as (_, process):
        try:
            os.kill(int((base.path / ".dev" / identity).read_text()), signal.SIGKILL)
            code = process.wait(demo.STOP_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 1
    log = (base.path / "dev.log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert f"{server} has ended by itself; its log is {base.path / '.dev'}" in line
    assert processes_in(base.path) == []
