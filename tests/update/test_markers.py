"""Markers of conflicts are caught before a commit, and before a merge."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests import rendering
from tests.update import releases

pytestmark = pytest.mark.xdist_group("markers")

Check = Callable[[Path], subprocess.CompletedProcess[str]]
CONFLICTS = [releases.ADDED_FILE, releases.CHANGED_FILE]
BEGIN, MIDDLE, END = "<<<<<<< before updating", "=======", ">>>>>>> after updating"


@pytest.fixture(scope="module", params=["github", "gitlab"])
def service(
    request: pytest.FixtureRequest, next_version: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make a service whose update ended in conflicts that were added nevertheless."""
    path = tmp_path_factory.mktemp("markers") / "service"
    service = rendering.render(
        next_version, path, {"ci": request.param}, version=releases.WORKING_TREE
    )
    releases.commit_service(service)
    for name in CONFLICTS:
        (service / name).write_text("# ours\n")
    rendering.commit(service, "The team's work")
    releases.update(service)
    rendering.git(service, "add", "--all")
    return service


def hook(service: Path, name: str = "conflict-markers") -> subprocess.CompletedProcess[str]:
    return run(service, sys.executable, "-m", "pre_commit", "run", name, "--all-files")


def ci_step(service: Path) -> subprocess.CompletedProcess[str]:
    gitlab = service / ".gitlab-ci.yml"
    if gitlab.exists():
        (step, *_) = yaml.safe_load(gitlab.read_text())["checks"]["script"]
    else:
        workflow = service / ".github" / "workflows" / "ci.yml"
        steps = yaml.safe_load(workflow.read_text())["jobs"]["checks"]["steps"]
        (step,) = (step["run"] for step in steps if "conflict" in step.get("name", ""))
    return run(service, "bash", "-e", "-c", step)


def run(service: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**rendering.GIT_ENVIRONMENT, "PRE_COMMIT_HOME": str(service.parent / "hooks")}
    return subprocess.run(
        command, cwd=service, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("check", [hook, ci_step])
def test_markers_are_caught_and_named(service: Path, check: Check) -> None:
    result = check(service)
    assert result.returncode == 1, result.stderr
    for name in CONFLICTS:
        assert name in result.stdout


# Seven equals signs are a heading in some texts: the hook can be told so, the CI cannot.
LEFT = [(hook, BEGIN), (hook, MIDDLE), (hook, END), (ci_step, BEGIN), (ci_step, END)]


@pytest.mark.parametrize(("check", "left"), LEFT)
def test_one_marker_that_is_left_is_caught(
    service: Path, check: Check, left: str, tmp_path: Path
) -> None:
    mended = without_conflicts(service, tmp_path)
    (mended / releases.CHANGED_FILE).write_text(f"# mended\n{left}\n")
    rendering.git(mended, "add", "--all")
    result = check(mended)
    assert result.returncode == 1, result.stdout + result.stderr
    assert releases.CHANGED_FILE in result.stdout


@pytest.mark.parametrize("check", [hook, ci_step])
def test_a_service_without_conflicts_passes(service: Path, check: Check, tmp_path: Path) -> None:
    clean = without_conflicts(service, tmp_path)
    cache = clean / ".uv-cache"  # where the CI keeps other people's texts
    cache.mkdir()
    (cache / "notes.txt").write_text(f"{BEGIN}\n")
    result = check(clean)
    assert result.returncode == 0, result.stdout + result.stderr


def without_conflicts(service: Path, folder: Path) -> Path:
    """The service as it was before the update."""
    rendering.git(folder, "clone", "--quiet", str(service), "clean")
    return folder / "clean"


def test_rejected_hunks_are_caught_and_named(service: Path, tmp_path: Path) -> None:
    updated = without_conflicts(service, tmp_path)
    assert hook(updated, "rejected-hunks").returncode == 0
    (updated / f"{releases.CHANGED_FILE}.rej").write_text("")
    rendering.git(updated, "add", "--all")
    result = hook(updated, "rejected-hunks")
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{releases.CHANGED_FILE}.rej" in result.stdout


def test_the_hook_stops_the_commit(service: Path) -> None:
    assert run(service, sys.executable, "-m", "pre_commit", "install").returncode == 0
    alone = "SKIP=ruff-check,ruff-format,lock"  # which have their own complaints
    result = run(service, "env", alone, "git", "commit", "--message", "Too early")
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "hook id: conflict-markers" in output, output
