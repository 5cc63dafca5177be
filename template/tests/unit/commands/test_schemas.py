from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import wiring
from app.commands.events import commands
from app.events import schemas

runner = CliRunner()


def test_each_event_is_exported_once(tmp_path: Path) -> None:
    first = runner.invoke(commands, ["schemas", "export", str(tmp_path)])
    assert f"{len(wiring.EVENTS)} schemas written" in first.output
    again = runner.invoke(commands, ["schemas", "export", str(tmp_path)])
    assert "all schemas were exported" in again.output


def test_a_schema_that_is_not_exported_fails_the_check(tmp_path: Path) -> None:
    result = runner.invoke(commands, ["schemas", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert "run `app schemas export`" in result.output


def test_exported_schemas_pass_the_check(tmp_path: Path) -> None:
    runner.invoke(commands, ["schemas", "export", str(tmp_path)])
    assert runner.invoke(commands, ["schemas", "check", str(tmp_path)]).exit_code == 0


@pytest.mark.parametrize("command", ["export", "check"])
def test_an_incompatible_change_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    runner.invoke(commands, ["schemas", "export", str(tmp_path)])
    monkeypatch.setattr(schemas, "schema_of", lambda _entry: {"properties": {}})
    result = runner.invoke(commands, ["schemas", command, str(tmp_path)])
    assert result.exit_code == 1
    assert "is gone" in result.output
    assert "Traceback" not in result.output
