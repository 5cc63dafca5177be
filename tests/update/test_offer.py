"""The weekly job of a service: one request to merge when, and only when, there is something new."""

from pathlib import Path

import pytest

from tests import rendering
from tests.update import offer
from tests.update.offer import BRANCH, Offer


@pytest.fixture(params=["github", "gitlab"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Offer:
    return offer.set_up(tmp_path, request.param)


def succeeds(service: Offer) -> str:
    result = service.run()
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_without_a_newer_version_nothing_happens(service: Offer) -> None:
    assert "no newer version" in succeeds(service)
    assert service.pushed == ""
    assert service.request is None


def test_a_template_that_cannot_be_reached_fails_the_job(service: Offer) -> None:
    service.template.rename(service.folder / "moved")
    result = service.run()
    assert result.returncode != 0, result.stdout
    assert service.pushed == ""


def test_a_newer_version_is_offered_as_one_commit(service: Offer) -> None:
    service.work({"ours.txt": "ours\n"})
    project = offer.PROJECT.replace('"1"', '"2"')
    files = {"code.py": "two\n", "new.txt": "new\n", "old.txt": None, "pyproject.toml": project}
    service.publish("v2.0.0", files)
    succeeds(service)
    assert rendering.git(service.origin, "rev-list", "--count", f"main..{BRANCH}") == "1\n"
    there = rendering.git(service.origin, "ls-tree", "--name-only", BRANCH).split()
    assert "new.txt" in there
    assert "old.txt" not in there
    assert service.show("code.py") == "two\n"
    assert service.show("ours.txt") == "ours\n"
    assert 'version = "2"' in service.show("uv.lock")
    request = service.request
    assert request is not None
    assert request["title"] == "Update from the template: v1.0.0 to v2.0.0"
    assert request["branch"] == BRANCH
    assert not request["draft"]
    assert "**New**:\n\n- `new.txt`\n" in request["body"]
    assert "- `old.txt`\n" in request["body"].partition("**Removed**")[2]
    assert "conflict**" not in request["body"]
    assert "uv run app db upgrade" in request["body"]


def test_a_conflict_is_pushed_with_its_markers_as_a_draft_that_names_it(service: Offer) -> None:
    service.work({"code.py": "ours\n"})
    service.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(service)
    assert "<<<<<<< before updating\nours\n" in service.show("code.py")
    request = service.request
    assert request is not None
    assert request["draft"], "there is a conflict"
    assert "- `code.py`\n" in request["body"].partition("**In conflict**")[2]


def test_the_same_update_is_offered_once(service: Offer) -> None:
    service.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(service)
    pushed, request = service.pushed, service.request
    succeeds(service)
    assert service.pushed == pushed
    assert service.request == request


def test_a_still_newer_version_takes_the_place_of_the_one_on_offer(service: Offer) -> None:
    service.work({"code.py": "ours\n"})
    service.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(service)
    service.publish("v3.0.0", {"code.py": "ours\n", "new.txt": "new\n"})
    succeeds(service)
    assert rendering.git(service.origin, "rev-list", "--count", f"main..{BRANCH}") == "1\n"
    assert service.show("code.py") == "ours\n"
    request = service.request
    assert request is not None
    assert request["title"].endswith("v1.0.0 to v3.0.0")
    assert not request["draft"], "there is no conflict any more"
    assert "- `new.txt`\n" in request["body"]


def test_a_branch_that_somebody_worked_on_is_left_as_it_is(service: Offer) -> None:
    service.publish("v2.0.0", {"code.py": "two\n"})
    succeeds(service)
    rendering.git(service.service, "fetch", "--quiet", "origin")
    rendering.git(service.service, "switch", "--quiet", BRANCH)
    (service.service / "code.py").write_text("mended\n")
    rendering.commit(service.service, "Mended")
    rendering.git(service.service, "push", "--quiet", "origin", BRANCH)
    pushed = service.pushed
    service.publish("v3.0.0", {"code.py": "three\n"})
    assert "left as it is" in succeeds(service)
    assert service.pushed == pushed


def test_what_cannot_be_locked_is_said_and_pushed_all_the_same(service: Offer) -> None:
    service.work({"pyproject.toml": offer.PROJECT.replace('"1"', '"1.ours"')})
    service.publish("v2.0.0", {"pyproject.toml": offer.PROJECT.replace('"1"', '"2"')})
    succeeds(service)
    request = service.request
    assert request is not None
    assert "- `uv.lock`\n" in request["body"].partition("**Not brought up to date**")[2]
    assert "- `pyproject.toml`\n" in request["body"].partition("**In conflict**")[2]
    assert "<<<<<<<" in service.show("pyproject.toml")


def test_workflows_are_pushed_only_with_a_token_that_may(tmp_path: Path) -> None:
    service = offer.set_up(tmp_path, "github")
    service.publish("v2.0.0", {".github/workflows/ci.yml": "on: push\n"})
    result = service.run(own_token=False)
    assert result.returncode == 1, result.stdout
    assert "TEMPLATE_UPDATE_TOKEN" in result.stdout
    assert service.pushed == ""
    succeeds(service)
    assert service.show(".github/workflows/ci.yml") == "on: push\n"


def test_both_jobs_do_the_same_up_to_the_push() -> None:
    first, second = (offer.script(ci) for ci in ("github", "gitlab"))
    shared = [
        text.partition("# From here")[2].partition("# The push.")[0] for text in (first, second)
    ]
    assert shared[0], "where it begins is said in both"
    assert shared[0] == shared[1]
