"""Where processes listen, and how long they may take to stop."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from app import database, server
from app.commands import serve
from app.kafka import consumer, producer
from app.kafka.settings import KafkaSettings
from app.runtime import Role

Served = list[tuple[set[Role], str, int]]

COMMANDS = [
    (Role.API, serve.commands, ["api"], 8000),
    (Role.WORKER, serve.commands, ["worker"], 8001),
]
if find_spec("app.commands.outbox") is not None:
    outbox = import_module("app.commands.outbox")
    COMMANDS.append((Role.RELAY, outbox.commands, ["relay"], 8002))
each_process = pytest.mark.parametrize(("role", "commands", "arguments", "port"), COMMANDS)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """What was asked of the server, which does not run."""
    served: Served = []
    for name in ("LISTEN_HOST", "LISTEN_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(
        serve, "serve", lambda roles, _, host, port: served.append((roles, host, port))
    )
    return served


@each_process
def test_a_process_listens_where_the_settings_say(
    role: Role,
    commands: Typer,
    arguments: list[str],
    port: int,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = CliRunner().invoke
    assert run(commands, arguments).exit_code == 0
    monkeypatch.setenv("LISTEN_HOST", "0.0.0.0")
    monkeypatch.setenv("LISTEN_PORT", "8123")
    assert run(commands, arguments).exit_code == 0
    assert run(commands, [*arguments, "--host", "::1", "--port", "9000"]).exit_code == 0

    assert served == [
        ({role}, "127.0.0.1", port),
        ({role}, "0.0.0.0", 8123),
        ({role}, "::1", 9000),
    ]


def test_compose_gives_every_process_the_time_that_it_may_take_to_stop() -> None:
    kafka = KafkaSettings(_env_file=None)
    drain = kafka.kafka_drain_timeout_seconds
    consumers = (
        drain + consumer.COMMIT_TIMEOUT_SECONDS + drain + consumer.STOP_MARGIN_SECONDS
    )  # of those the relay needs only the first
    connections = producer._CLOSE_SECONDS + database._CLOSE_SECONDS
    longest = server.REQUESTS_TIMEOUT_SECONDS + consumers + connections

    given = re.findall(r"stop_grace_period: (\d+)s", Path("compose.yaml").read_text())

    assert len(given) == 1, "one, for every process"
    assert int(given[0]) > longest
