"""The weekly job of a service opens one merge request if, and only if, there is a newer version."""

from pathlib import Path

import pytest

from tests import rendering
from tests.update import update_job
from tests.update.update_job import BRANCH, UpdateJob


@pytest.fixture(params=["github", "gitlab"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> UpdateJob:
    return update_job.set_up(tmp_path, request.param)


def succeeds(job: UpdateJob) -> str:
    result = job.run()
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_without_a_newer_version_nothing_happens(job: UpdateJob) -> None:
    assert "no newer version" in succeeds(job)
    assert job.pushed == ""
    assert job.request is None


def test_a_template_that_cannot_be_reached_fails_the_job(job: UpdateJob) -> None:
    job.template.rename(job.folder / "moved")
    result = job.run()
    assert result.returncode != 0, result.stdout
    assert job.pushed == ""


def test_a_newer_version_is_offered_as_one_commit(job: UpdateJob) -> None:
    job.work({"ours.txt": "ours\n"})
    project = update_job.PROJECT.replace('"1"', '"2"')
    files = {"code.py": "two\n", "new.txt": "new\n", "old.txt": None, "pyproject.toml": project}
    job.publish("v2.0.0", files)
    succeeds(job)
    assert rendering.git(job.origin, "rev-list", "--count", f"main..{BRANCH}") == "1\n"
    there = rendering.git(job.origin, "ls-tree", "--name-only", BRANCH).split()
    assert "new.txt" in there
    assert "old.txt" not in there
    assert job.show("code.py") == "two\n"
    assert job.show("ours.txt") == "ours\n"
    assert 'version = "2"' in job.show("uv.lock")
    request = job.request
    assert request is not None
    assert request["title"] == "Update from the template: v1.0.0 to v2.0.0"
    assert request["branch"] == BRANCH
    assert not request["draft"]
    assert "**New**:\n\n- `new.txt`\n" in request["body"]
    assert "- `old.txt`\n" in request["body"].partition("**Removed**")[2]
    assert "conflict**" not in request["body"]
    assert "uv run app db upgrade" in request["body"]


def test_a_conflict_is_pushed_as_a_draft_that_names_it(job: UpdateJob) -> None:
    job.work({"code.py": "ours\n"})
    job.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(job)
    assert "<<<<<<< before updating\nours\n" in job.show("code.py")
    request = job.request
    assert request is not None
    assert request["draft"], "there is a conflict"
    assert "- `code.py`\n" in request["body"].partition("**In conflict**")[2]


def test_the_same_update_is_offered_once(job: UpdateJob) -> None:
    job.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(job)
    pushed, request = job.pushed, job.request
    succeeds(job)
    assert job.pushed == pushed
    assert job.request == request


def test_a_newer_version_replaces_the_one_on_offer(job: UpdateJob) -> None:
    job.work({"code.py": "ours\n"})
    job.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(job)
    job.publish("v3.0.0", {"code.py": "ours\n", "new.txt": "new\n"})
    succeeds(job)
    assert rendering.git(job.origin, "rev-list", "--count", f"main..{BRANCH}") == "1\n"
    assert job.show("code.py") == "ours\n"
    request = job.request
    assert request is not None
    assert request["title"].endswith("v1.0.0 to v3.0.0")
    assert not request["draft"], "there is no conflict any more"
    assert "- `new.txt`\n" in request["body"]


def test_a_branch_that_somebody_worked_on_is_left_as_it_is(job: UpdateJob) -> None:
    job.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(job)
    rendering.git(job.service, "fetch", "--quiet", "origin")
    rendering.git(job.service, "switch", "--quiet", BRANCH)
    (job.service / "code.py").write_text("mended\n")
    rendering.commit(job.service, "Mended")
    rendering.git(job.service, "push", "--quiet", "origin", BRANCH)
    pushed = job.pushed
    job.publish("v3.0.0", {"code.py": "three\n"})
    assert "left as it is" in succeeds(job)
    assert job.pushed == pushed


def test_what_cannot_be_locked_is_said_and_pushed_all_the_same(job: UpdateJob) -> None:
    job.work({"pyproject.toml": update_job.PROJECT.replace('"1"', '"1.ours"')})
    job.publish("v2.0.0", {"pyproject.toml": update_job.PROJECT.replace('"1"', '"2"')})
    succeeds(job)
    request = job.request
    assert request is not None
    assert "- `uv.lock`\n" in request["body"].partition("**Not brought up to date**")[2]
    assert "- `pyproject.toml`\n" in request["body"].partition("**In conflict**")[2]
    assert "<<<<<<<" in job.show("pyproject.toml")


def test_workflows_are_pushed_only_with_a_token_that_may(tmp_path: Path) -> None:
    job = update_job.set_up(tmp_path, "github")
    job.publish("v2.0.0", {".github/workflows/ci.yml": "on: push\n"})
    result = job.run(own_token=False)
    assert result.returncode == 1, result.stdout
    assert "TEMPLATE_UPDATE_TOKEN" in result.stdout
    assert job.pushed == ""
    succeeds(job)
    assert job.show(".github/workflows/ci.yml") == "on: push\n"


def test_both_jobs_do_the_same_up_to_the_push() -> None:
    first, second = (update_job.script(ci) for ci in ("github", "gitlab"))
    shared = [
        text.partition("# From here")[2].partition("# The push.")[0] for text in (first, second)
    ]
    assert shared[0], "where it begins is said in both"
    assert shared[0] == shared[1]
