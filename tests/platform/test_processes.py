"""The addresses of processes, and the time that they may take to stop."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import wiring
from app.platform.cli import command_line
from app.platform.database import engine as database
from app.platform.http import server
from app.platform.kafka import connection, consumers, offsets
from app.platform.kafka.settings import KafkaSettings
from app.platform.service import Role

cli = command_line(lambda: wiring.service)

Served = list[tuple[set[Role], str, int]]

PROCESSES = [(Role.API, 8000), (Role.WORKER, 8001)]
if find_spec("app.platform.cli.outbox") is not None:
    PROCESSES.append((Role.RELAY, 8002))
each_process = pytest.mark.parametrize(("role", "port"), PROCESSES)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Record the calls of the server, which does not run."""
    served: Served = []
    for name in ("LISTEN_HOST", "LISTEN_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(
        server, "serve", lambda _, roles, __, host, port: served.append((roles, host, port))
    )
    return served


@each_process
def test_a_process_listens_where_the_settings_say(
    role: Role, port: int, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: str) -> int:
        return CliRunner().invoke(cli, [role, *options]).exit_code

    assert run() == 0
    monkeypatch.setenv("LISTEN_HOST", "0.0.0.0")
    monkeypatch.setenv("LISTEN_PORT", "8123")
    assert run() == 0
    assert run("--host", "::1", "--port", "9000") == 0

    assert served == [
        ({role}, "127.0.0.1", port),
        ({role}, "0.0.0.0", 8123),
        ({role}, "::1", 9000),
    ]


def test_compose_gives_every_process_time_to_stop() -> None:
    kafka = KafkaSettings(_env_file=None)
    drain = kafka.kafka_drain_timeout_seconds
    # Of these the relay needs only the first.
    consuming = drain + offsets.COMMIT_TIMEOUT_SECONDS + drain + consumers.STOP_MARGIN_SECONDS
    connections = connection._CLOSE_SECONDS + database._CLOSE_SECONDS
    longest = server.GRACEFUL_SHUTDOWN_SECONDS + consuming + connections

    given = re.findall(r"stop_grace_period: (\d+)s", Path("compose.yaml").read_text())

    assert len(given) == 1, "one, for every process"
    assert int(given[0]) > longest
