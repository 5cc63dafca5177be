"""`nox -s new`: render, lock, commit, from a source that can be found again."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import rendering


def new(template: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "nox", "-s", "new", "--", *arguments),
        cwd=template,
        env=rendering.GIT_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone the template, for nox to make its environments in."""
    return rendering.snapshot(tmp_path_factory.mktemp("clone") / "template")


def test_a_new_service_is_committed_and_can_be_updated(template: Path) -> None:
    (template / "template" / "unfinished.txt").write_text("not committed\n")
    result = new(template, "../orders", "--defaults", "-d", "project_name=Order Service")
    assert result.returncode == 0, result.stdout
    service = template.parent / "orders"
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert answers["_src_path"] == str(template)
    assert answers["project_name"] == "Order Service"
    assert not (service / "unfinished.txt").exists()
    assert rendering.git(service, "status", "--porcelain") == ""
    assert "uv.lock" in rendering.git(service, "ls-files").splitlines()
    update = rendering.copier("update", "--defaults", cwd=service)
    assert update.returncode == 0, update.stderr
    assert rendering.git(service, "status", "--porcelain") == ""


def test_an_answer_to_an_unknown_question_is_refused(template: Path) -> None:
    result = new(template, "../other", "--defaults", "-d", "projectname=Orders")
    assert result.returncode != 0
    assert "no question is called projectname" in result.stdout
    assert not (template.parent / "other").exists()


def test_a_missing_path_is_asked_for(template: Path) -> None:
    result = new(template)
    assert result.returncode != 0
    assert "nox -s new -- ../my-service" in result.stdout
