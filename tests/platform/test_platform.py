"""`app platform` lists what `changes` finds; what that finds is tried on updated services."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app import wiring
from app.platform.cli import command_line
from app.platform.dev import changes
from app.platform.dev.changes import Change, TemplateUnavailable

LOGS = Path("app/platform/logs.py")


def listed(*arguments: str) -> Result:
    return CliRunner().invoke(command_line(lambda: wiring.service), ["platform", *arguments])


def found(monkeypatch: pytest.MonkeyPatch, these: Mapping[Path, Change]) -> None:
    monkeypatch.setattr(changes, "find_changes", lambda _project: these)


def test_changes_are_listed_and_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, {LOGS: Change.EDITED})
    result = listed()
    assert result.exit_code == 0
    assert result.stdout == "edited   app/platform/logs.py\n1 file of app/platform changed here\n"


@pytest.mark.parametrize(("these", "code"), [({LOGS: Change.DELETED}, 1), ({}, 0)])
def test_a_check_fails_if_there_is_any(
    monkeypatch: pytest.MonkeyPatch, these: Mapping[Path, Change], code: int
) -> None:
    found(monkeypatch, these)
    assert listed("--check").exit_code == code


def test_a_template_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_project: Path) -> Mapping[Path, Change]:
        raise TemplateUnavailable("the template cannot be rendered: gone")

    monkeypatch.setattr(changes, "find_changes", unavailable)
    result = listed()
    assert result.exit_code == 1
    assert result.stderr == "error: the template cannot be rendered: gone\n"


def test_a_missing_copier_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".copier-answers.yml").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TemplateUnavailable, match=r"neither `copier` nor `uvx` is on the PATH"):
        changes.find_changes(tmp_path)
