"""The steps of this repository's workflow, run as a runner does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import matrix, rendering
from tests.rendering import ROOT
from tests.shell import environment

JOBS: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / ".github" / "workflows" / "ci.yml").read_text()
)["jobs"]
HEAVY = "needs.changes.outputs.heavy == 'true'"


def script(job: str, step: str) -> str:
    (found,) = (it["run"] for it in JOBS[job]["steps"] if it.get("name") == step)
    return str(found)


def outputs(job: str, step: str, folder: Path, **settings: str) -> dict[str, str]:
    """Run a step in `folder`; return the outputs that it writes to GITHUB_OUTPUT."""
    written = folder.with_name("output")
    written.touch()
    result = subprocess.run(
        ("bash", "-e", "-c", script(job, step)),
        cwd=folder,
        env={**environment("GIT_"), "GITHUB_OUTPUT": str(written), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in written.read_text().splitlines())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a repository with each kind of file."""
    folder = tmp_path / "project"
    names = ["docs/page.md", "README.md", "template/docs/page.md", "template/README.md.jinja"]
    for name in [*names, "tests/test_it.py", "copier.yml"]:
        put(folder, name, f"the first {name}\n")
    rendering.git(folder, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(folder, "Start")
    return folder


def put(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("changed", "heavy"),
    [
        (["docs/page.md"], "false"),
        (["docs/decisions/new.md", "README.md", "LICENSE"], "false"),
        (["docs/page.md", "copier.yml"], "true"),
        (["template/docs/page.md"], "true"),
        (["template/README.md.jinja"], "true"),
        (["tests/docs/page.md"], "true"),
        ([".github/workflows/ci.yml"], "true"),
        ([], "true"),
    ],
    ids=str,
)
def test_only_a_change_of_documentation_alone_is_light(
    changed: list[str], heavy: str, project: Path
) -> None:
    before = rendering.git(project, "rev-parse", "HEAD").strip()
    for name in changed:
        put(project, name, "changed\n")
    rendering.git(project, "commit", "--quiet", "--allow-empty", "--message", "Nothing")
    if changed:
        rendering.commit(project, "Change")
    assert paths(project, before) == {"heavy": heavy}


def test_code_that_becomes_documentation_is_a_change_of_code(project: Path) -> None:
    before = rendering.git(project, "rev-parse", "HEAD").strip()
    rendering.git(project, "mv", "tests/test_it.py", "docs/it.md")
    rendering.commit(project, "Move")
    assert paths(project, before) == {"heavy": "true"}


@pytest.mark.parametrize("before", ["0" * 40, "1234567890" * 4, ""], ids=["new", "forced", "none"])
def test_everything_may_have_changed_since_an_unknown_commit(before: str, project: Path) -> None:
    put(project, "docs/page.md", "changed\n")
    rendering.commit(project, "Change")
    assert paths(project, before) == {"heavy": "true"}


def paths(project: Path, before: str) -> dict[str, str]:
    return outputs("changes", "Is it more than documentation?", project, BEFORE=before)


def test_the_variants_of_the_matrix_are_those_of_the_list(tmp_path: Path) -> None:
    # uv makes an environment where it runs; this one's Python, so that nothing is fetched.
    here = rendering.snapshot(tmp_path / "here")
    found = outputs("changes", "Which variants are there?", here, UV_PYTHON=sys.executable)
    assert json.loads(found["variants"]) == [code.code for code in matrix.codes()]
    wanted = JOBS["generated"]["strategy"]["matrix"]["variant"]
    assert wanted == "${{ fromJSON(needs.changes.outputs.variants) }}"


HEAVY_JOBS = ("generated", "drills", "debezium")
SUCCESS = dict.fromkeys(("changes", "check", *HEAVY_JOBS), "success")
SKIPPED = {**SUCCESS, **dict.fromkeys(HEAVY_JOBS, "skipped")}


@pytest.mark.parametrize(
    ("results", "heavy", "passes"),
    [
        (SUCCESS, "true", True),
        (SKIPPED, "false", True),
        (SKIPPED, "true", False),
        (SKIPPED, "", False),
        ({**SKIPPED, "changes": "failure"}, "", False),
        ({**SKIPPED, "check": "failure"}, "false", False),
        ({**SKIPPED, "check": "skipped"}, "false", False),
        ({**SUCCESS, "generated": "failure"}, "true", False),
        ({**SUCCESS, "generated": "failure"}, "false", False),
        ({**SUCCESS, "drills": "cancelled"}, "true", False),
        ({**SUCCESS, "check": "cancelled"}, "true", False),
    ],
    ids=str,
)
def test_the_gate_opens_when_every_needed_job_passed(
    results: dict[str, str], heavy: str, passes: bool
) -> None:
    needs = {name: {"result": result, "outputs": {}} for name, result in results.items()}
    if heavy:
        needs["changes"]["outputs"] = {"heavy": heavy}
    result = subprocess.run(
        (sys.executable, "-c", script("gate", "Did all pass?")),
        env={**os.environ, "NEEDS": json.dumps(needs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) is passes, result.stderr
    assert passes or "not passed" in result.stderr


def test_the_gate_waits_for_every_job_whatever_becomes_of_it() -> None:
    assert JOBS["gate"]["if"] == "always()"
    assert {*JOBS["gate"]["needs"], "gate"} == JOBS.keys() == {*SUCCESS, "gate"}
    left_out = {name for name, job in JOBS.items() if job.get("if") == HEAVY}
    assert {name for name, result in SKIPPED.items() if result == "skipped"} == left_out


def test_the_workflow_runs_every_session_that_has_to_pass() -> None:
    (listed,) = re.findall(r"^nox.options.sessions = (\[.+\])$", noxfile(), re.MULTILINE)
    sessions = {*JOBS["check"]["strategy"]["matrix"]["session"], "generated"}
    assert sessions == set(json.loads(listed))
    for job in ("drills", "debezium"):
        commands = [step["run"] for step in JOBS[job]["steps"] if "run" in step]
        assert commands == [f"uvx nox -s {job}"]


def test_the_workflow_runs_on_every_supported_python() -> None:
    (listed,) = re.findall(r"^SERVICE_PYTHONS = (\[.+\])$", noxfile(), re.MULTILINE)
    assert JOBS["generated"]["strategy"]["matrix"]["python"] == json.loads(listed)


def test_updates_are_tested_with_every_released_version_at_hand() -> None:
    checkouts = [step for step in JOBS["check"]["steps"] if "checkout" in step.get("uses", "")]
    assert [step["with"]["fetch-depth"] for step in checkouts] == [0]


def noxfile() -> str:
    return (ROOT / "noxfile.py").read_text()
