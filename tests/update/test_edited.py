"""A team's edits survive an update, or stand in a conflict that git shows."""

import re
import shutil
from pathlib import Path

import pytest

from tests import rendering
from tests.update import released

pytestmark = pytest.mark.xdist_group("edited")

OURS = "said by the team"


@pytest.fixture(scope="module")
def service(version: str, ahead: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service with edits of each kind, updated."""
    path = tmp_path_factory.mktemp("edited") / "service"
    service = released.start(ahead, version, path, {"modules": ["outbox"]})
    in_first_line(service / released.CHANGED)
    for name in (released.CHANGED, "app/platform/kafka/topics.py", released.DROPPED):
        at_the_end(service / name)
    for name in (*ADDED, released.ADDED):
        (service / name).write_text(f"# {OURS}\n")
    for name in DELETED:
        (service / name).unlink()
    rendering.commit(service, "The team's work")
    released.update(service)
    return service


ADDED = ["app/ours.py", "app/platform/kafka/ours.py", "app/platform/outbox/ours.py", "notes.md"]
DELETED = ["compose.yaml", "app/platform/cli/dlq.py", "tests/orders/test_api.py"]


def in_first_line(path: Path) -> None:
    first, _, rest = path.read_text().partition("\n")
    path.write_text(f"{first} # {OURS}\n{rest}")


def at_the_end(path: Path) -> None:
    path.write_text(f"{path.read_text()}\n# {OURS}, at the end\n")


def conflicts(service: Path) -> set[str]:
    unmerged = rendering.git(service, "ls-files", "--unmerged").splitlines()
    return {line.partition("\t")[2] for line in unmerged}


def test_what_both_changed_is_in_conflict_and_both_are_there(service: Path) -> None:
    assert released.CHANGED in conflicts(service)
    text = (service / released.CHANGED).read_text()
    before, after = halves(text)
    assert OURS in before
    assert released.SAID_ANEW in after


def test_a_file_that_both_added_is_in_conflict_and_both_are_there(service: Path) -> None:
    assert released.ADDED in conflicts(service)
    before, after = halves((service / released.ADDED).read_text())
    assert OURS in before
    assert after


def halves(text: str) -> tuple[str, str]:
    found = re.search(
        r"^<{7} before updating\n(.*?)^={7}\n(.*?)^>{7} after updating$", text, re.M | re.S
    )
    assert found, text
    return found.group(1), found.group(2)


def test_nothing_else_is_in_conflict(service: Path) -> None:
    assert conflicts(service) == {released.CHANGED, released.ADDED}


def test_an_edit_elsewhere_is_kept(service: Path) -> None:
    for name in (released.CHANGED, "app/platform/kafka/topics.py"):
        assert (service / name).read_text().endswith(f"# {OURS}, at the end\n"), name


def test_added_files_are_kept(service: Path) -> None:
    for name in ADDED:
        assert (service / name).read_text() == f"# {OURS}\n"


def test_deleted_files_stay_deleted(service: Path) -> None:
    assert [name for name in DELETED if (service / name).exists()] == []


def test_an_edit_in_a_file_that_the_template_dropped_is_shown_as_removed(service: Path) -> None:
    """Copier's limit, said in docs/updating.md: the file goes, and only git still has the edit."""
    assert f" D {released.DROPPED}\n" in rendering.git(service, "status", "--porcelain")
    assert OURS in rendering.git(service, "show", f"HEAD:{released.DROPPED}")


def test_a_renamed_file_is_one_that_vanished_and_one_that_is_new(service: Path) -> None:
    old, new = released.RENAMED
    status = rendering.git(service, "status", "--porcelain")
    assert f" D {old}\n" in status
    assert f"?? {new}\n" in status


def test_edits_in_the_files_of_a_module_that_is_switched_off_are_shown_as_removed(
    version: str, ahead: Path, tmp_path: Path
) -> None:
    service = released.start(ahead, version, tmp_path / "service", {"modules": ["outbox"]})
    platform = service / "app" / "platform"
    at_the_end(platform / "outbox" / "store.py")
    at_the_end(platform / "kafka" / "topics.py")
    (platform / "outbox" / "ours.py").write_text(f"# {OURS}\n")
    rendering.commit(service, "The team's work")
    released.update(service, "--data", "modules=[]")
    left = [path.name for path in (platform / "outbox").iterdir()]
    assert left == ["ours.py"], "what the team added is not the module's"
    assert OURS in (platform / "kafka" / "topics.py").read_text()
    assert " D app/platform/outbox/store.py\n" in rendering.git(service, "status", "--porcelain")
    assert OURS in rendering.git(service, "show", "HEAD:app/platform/outbox/store.py")


def test_edits_in_slices_alone_lead_to_no_conflict_in_the_platform(
    version: str, ahead: Path, tmp_path: Path
) -> None:
    service = released.start(ahead, version, tmp_path / "service", {})
    for path in [*(service / "app").glob("*/*.py"), service / "app" / "wiring.py"]:
        if path.parent.name != "platform":
            at_the_end(path)
    rendering.commit(service, "The team's work")
    released.update(service)
    assert OURS in (service / released.EXAMPLE_CHANGED).read_text()
    assert released.EXAMPLE_CHANGED in conflicts(service), "the template changed a slice, too"
    assert [name for name in conflicts(service) if name.startswith("app/platform/")] == []
    assert released.SAID_ANEW in (service / released.CHANGED).read_text()


# What the README says to delete, and what would bring it back.
SLICES = ["users", "posts", "orders"]
SAMPLE = [f"{folder}/{name}" for folder in ("app", "tests") for name in SLICES]
OF_SAMPLE = re.compile(r"app.(users|posts|orders)|/(users|posts|orders)")
WIRED = re.compile(r".*\b(?:users|posts|orders)\b.*\n")


def test_an_example_domain_that_was_removed_by_hand_does_not_come_back(
    version: str, ahead: Path, tmp_path: Path
) -> None:
    service = released.start(ahead, version, tmp_path / "service", {})
    assert (service / released.EXAMPLE_CHANGED).is_file(), "the newer version changes it"
    for folder in SAMPLE:
        shutil.rmtree(service / folder)
    wiring = service / "app" / "wiring.py"
    plugged_in = WIRED.findall(wiring.read_text())
    assert plugged_in
    wiring.write_text(WIRED.sub("", wiring.read_text()))
    rendering.commit(service, "Our own domain instead")
    released.update(service)
    assert [name for name in SAMPLE if (service / name).exists()] == []
    wired = WIRED.findall(as_the_team_had_it(wiring.read_text()))
    assert [line for line in wired if line in plugged_in] == []
    added = rendering.git(service, "ls-files", "--others", "--exclude-standard").splitlines()
    assert added, "the newer version adds something"
    for name in added:
        assert not OF_SAMPLE.search((service / name).read_text()), f"{name} brings it back"


def as_the_team_had_it(text: str) -> str:
    """A file without the template's half of its conflicts."""
    return re.sub(r"^={7}\n.*?^>{7} after updating\n", "", text, flags=re.M | re.S)
