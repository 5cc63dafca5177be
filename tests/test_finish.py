"""The finishing hook, against a small project instead of a whole service."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rendering
from tests.rendering import ROOT


@pytest.fixture
def service(tmp_path: Path) -> Path:
    service = tmp_path / "orders"
    service.mkdir()
    (service / ".copier-answers.yml").write_text("_commit: v0.0.1\n")
    (service / "pyproject.toml").write_text(
        '[project]\nname = "orders"\nversion = "0"\nrequires-python = ">=3.11"\n'
    )
    return service


def finish(service: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, str(ROOT / "hooks" / "finish.py"), str(service)),
        env=rendering.GIT_ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fresh_service_gets_repository_lock_and_commit(service: Path) -> None:
    result = finish(service)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "git     started a repository",
        "lock    wrote uv.lock",
        "commit  made the first commit",
    ]
    assert rendering.git(service, "status", "--porcelain") == ""
    assert "uv.lock" in rendering.git(service, "ls-files").splitlines()


def test_a_second_run_changes_nothing_and_says_so(service: Path) -> None:
    finish(service)
    before = rendering.git(service, "rev-parse", "HEAD")
    result = finish(service)
    assert result.returncode == 0, result.stderr
    assert all("nothing to do" in line for line in result.stdout.splitlines())
    assert rendering.git(service, "rev-parse", "HEAD") == before


def test_a_folder_of_a_larger_repository_is_not_committed(service: Path) -> None:
    rendering.git(service.parent, "init", "--quiet")
    result = finish(service)
    assert result.returncode == 0, result.stderr
    assert "part of the repository" in result.stdout
    assert not (service / ".git").exists()
    assert "commit" not in result.stdout


def test_a_folder_without_a_service_is_refused(tmp_path: Path) -> None:
    result = finish(tmp_path)
    assert result.returncode == 1
    assert "no rendered service" in result.stderr
    assert not (tmp_path / ".git").exists()


def test_a_committer_without_a_name_gets_the_remedy(service: Path) -> None:
    nameless = dict.fromkeys(
        ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), ""
    )
    result = finish(service, **nameless)
    assert result.returncode == 1
    assert "git config --global user.name" in result.stderr
    assert (service / "uv.lock").exists()


def test_a_missing_tool_is_named(service: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    git = shutil.which("git")
    assert git is not None
    (programs / "git").symlink_to(git)
    result = finish(service, PATH=str(programs), HOME=os.environ.get("HOME", "/"))
    assert result.returncode == 1
    assert result.stderr.strip() == "uv is not installed, or not on the PATH"
