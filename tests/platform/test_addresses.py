"""Commands beside a running `app dev`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app import wiring
from app.platform.cli import base as commands
from app.platform.cli import command_line
from app.platform.cli.base import advice, load
from app.platform.config import ConfigurationError
from app.platform.database.engine import DatabaseSettings
from app.platform.dev import process
from app.platform.dev.errors import DevelopmentDependencyMissing
from app.platform.dev.process import start_time
from app.platform.dev.servers import ADDRESSES, Servers, publish_addresses, running_addresses
from app.platform.http import server
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Configuration

URL = "postgresql://postgres@127.0.0.1:20001/postgres"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a service in which nothing runs, and for which nothing is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    (tmp_path / ".dev").mkdir()
    commands._dev_servers.cache_clear()
    yield tmp_path
    commands._dev_servers.cache_clear()


def tell(**changes: Any) -> None:
    """The file that a run of `app dev` in this process would have written."""
    written = {
        "process": os.getpid(),
        "started": start_time(os.getpid()),
        "settings": {"database_url": URL, "kafka_bootstrap_servers": "127.0.0.1:20002"},
    }
    ADDRESSES.write_text(json.dumps({**written, **changes}))


def database_url() -> str:
    return load(DatabaseSettings).database_url.get_secret_value()


@pytest.mark.usefixtures("folder")
def test_a_command_uses_the_running_servers_and_says_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell()

    assert load(KafkaSettings).kafka_bootstrap_servers == "127.0.0.1:20002"
    assert database_url() == URL
    assert capsys.readouterr().err == "using the servers of `app dev`\n"
    assert advice(KafkaSettings, "KAFKA_BOOTSTRAP_SERVERS") == ""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["api", "worker"])
def test_a_process_beside_it_uses_the_running_servers_too(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    tell()
    served: list[Configuration] = []

    def keep(_service: object, _roles: object, configuration: Configuration, *_: object) -> None:
        served.append(configuration)

    monkeypatch.setattr(server, "serve", keep)
    result = CliRunner().invoke(command_line(lambda: wiring.service), [command])

    assert result.output == "using the servers of `app dev`\n"
    (used,) = served
    assert used.database.database_url.get_secret_value() == URL
    assert used.kafka.kafka_bootstrap_servers == "127.0.0.1:20002"


@pytest.mark.usefixtures("folder")
def test_settings_of_the_environment_win(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell()
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")

    assert load(KafkaSettings).kafka_bootstrap_servers == "kafka.example:9092"
    assert capsys.readouterr().err == ""
    assert database_url() == URL


def test_settings_of_the_env_file_win(folder: Path) -> None:
    tell()
    (folder / ".env").write_text("DATABASE_URL=postgresql://db.example/app\n")

    assert database_url() == "postgresql://db.example/app"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("changes", [{"process": 2**22 + 1}, {"started": 1.0}])
def test_addresses_of_a_killed_run_are_ignored(changes: dict[str, Any]) -> None:
    tell(**changes)  # nobody has its process id, or somebody else has

    assert running_addresses() == {}
    assert "localhost" in database_url()
    assert advice(DatabaseSettings, "DATABASE_URL").endswith("or set DATABASE_URL")


@pytest.mark.usefixtures("folder")
def test_addresses_end_with_the_run_and_hold_no_given_one() -> None:
    given = "postgresql://app:hunter2@db.example/app"
    with Servers(Path(".dev"), "mock", database_url=given, say=lambda _: None) as servers:
        with publish_addresses(servers):
            assert running_addresses() == {
                "kafka_bootstrap_servers": servers.kafka_bootstrap_servers
            }
            assert "hunter2" not in ADDRESSES.read_text()
        assert not ADDRESSES.exists()


@pytest.mark.usefixtures("folder")
def test_without_the_development_dependencies_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell()

    def missing() -> Any:
        raise DevelopmentDependencyMissing("psutil")

    monkeypatch.setattr(process, "_psutil", missing)
    with pytest.raises(ConfigurationError, match="'psutil' is not installed"):
        load(KafkaSettings)
