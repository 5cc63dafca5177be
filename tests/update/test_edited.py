"""A team's edits survive an update, or stand in a conflict that git shows."""

import re
import shutil
from pathlib import Path

import pytest

from tests import rendering
from tests.update import releases

pytestmark = pytest.mark.xdist_group("edited")

OURS = "said by the team"


@pytest.fixture(scope="module")
def service(version: str, next_version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a service, edit it in each way, and update it."""
    path = tmp_path_factory.mktemp("edited") / "service"
    service = releases.start(next_version, version, path, {"modules": ["outbox"]})
    edit_first_line(service / releases.CHANGED_FILE)
    for name in (releases.CHANGED_FILE, "app/platform/kafka/topics.py", releases.REMOVED_FILE):
        append_line(service / name)
    for name in (*ADDED_BY_TEAM, releases.ADDED_FILE):
        (service / name).write_text(f"# {OURS}\n")
    for name in DELETED_BY_TEAM:
        (service / name).unlink()
    rendering.commit(service, "The team's work")
    releases.update(service)
    return service


ADDED_BY_TEAM = [
    "app/ours.py",
    "app/platform/kafka/ours.py",
    "app/platform/outbox/ours.py",
    "notes.md",
]
DELETED_BY_TEAM = ["compose.yaml", "app/platform/cli/dlq.py", "tests/orders/test_api.py"]


def edit_first_line(path: Path) -> None:
    first, _, rest = path.read_text().partition("\n")
    path.write_text(f"{first} # {OURS}\n{rest}")


def append_line(path: Path) -> None:
    path.write_text(f"{path.read_text()}\n# {OURS}, at the end\n")


def conflicts(service: Path) -> set[str]:
    unmerged = rendering.git(service, "ls-files", "--unmerged").splitlines()
    return {line.partition("\t")[2] for line in unmerged}


def test_lines_that_both_changed_are_in_conflict(service: Path) -> None:
    assert releases.CHANGED_FILE in conflicts(service)
    text = (service / releases.CHANGED_FILE).read_text()
    before, after = conflict_sides(text)
    assert OURS in before
    assert releases.CHANGED_DOCSTRING in after


def test_a_file_that_both_added_is_in_conflict(service: Path) -> None:
    assert releases.ADDED_FILE in conflicts(service)
    before, after = conflict_sides((service / releases.ADDED_FILE).read_text())
    assert OURS in before
    assert after


def conflict_sides(text: str) -> tuple[str, str]:
    found = re.search(
        r"^<{7} before updating\n(.*?)^={7}\n(.*?)^>{7} after updating$", text, re.M | re.S
    )
    assert found, text
    return found.group(1), found.group(2)


def test_nothing_else_is_in_conflict(service: Path) -> None:
    assert conflicts(service) == {releases.CHANGED_FILE, releases.ADDED_FILE}


def test_an_edit_elsewhere_is_kept(service: Path) -> None:
    for name in (releases.CHANGED_FILE, "app/platform/kafka/topics.py"):
        assert (service / name).read_text().endswith(f"# {OURS}, at the end\n"), name


def test_added_files_are_kept(service: Path) -> None:
    for name in ADDED_BY_TEAM:
        assert (service / name).read_text() == f"# {OURS}\n"


def test_deleted_files_stay_deleted(service: Path) -> None:
    assert [name for name in DELETED_BY_TEAM if (service / name).exists()] == []


def test_edits_in_a_file_that_the_template_removed_are_in_git(service: Path) -> None:
    """A limit of Copier (docs/updating.md): the file is removed, and only git has the edit."""
    assert f" D {releases.REMOVED_FILE}\n" in rendering.git(service, "status", "--porcelain")
    assert OURS in rendering.git(service, "show", f"HEAD:{releases.REMOVED_FILE}")


def test_a_renamed_file_is_removed_and_added(service: Path) -> None:
    old, new = releases.RENAMED_FILE
    status = rendering.git(service, "status", "--porcelain")
    assert f" D {old}\n" in status
    assert f"?? {new}\n" in status


def test_edits_in_a_module_that_is_switched_off_are_in_git(
    version: str, next_version: Path, tmp_path: Path
) -> None:
    service = releases.start(next_version, version, tmp_path / "service", {"modules": ["outbox"]})
    platform = service / "app" / "platform"
    append_line(platform / "outbox" / "store.py")
    append_line(platform / "kafka" / "topics.py")
    (platform / "outbox" / "ours.py").write_text(f"# {OURS}\n")
    rendering.commit(service, "The team's work")
    releases.update(service, "--data", "modules=[]")
    left = [path.name for path in (platform / "outbox").iterdir()]
    assert left == ["ours.py"], "what the team added is not the module's"
    assert OURS in (platform / "kafka" / "topics.py").read_text()
    assert " D app/platform/outbox/store.py\n" in rendering.git(service, "status", "--porcelain")
    assert OURS in rendering.git(service, "show", "HEAD:app/platform/outbox/store.py")


def test_edits_in_slices_never_conflict_in_the_platform(
    version: str, next_version: Path, tmp_path: Path
) -> None:
    service = releases.start(next_version, version, tmp_path / "service", {})
    for path in [*(service / "app").glob("*/*.py"), service / "app" / "wiring.py"]:
        if path.parent.name != "platform":
            append_line(path)
    rendering.commit(service, "The team's work")
    releases.update(service)
    assert OURS in (service / releases.CHANGED_EXAMPLE).read_text()
    assert releases.CHANGED_EXAMPLE in conflicts(service), "the template changed a slice, too"
    assert [name for name in conflicts(service) if name.startswith("app/platform/")] == []
    assert releases.CHANGED_DOCSTRING in (service / releases.CHANGED_FILE).read_text()


# What the README says to delete, and what would bring it back.
SLICES = ["users", "posts", "orders"]
SAMPLE_SLICES = [f"{folder}/{name}" for folder in ("app", "tests") for name in SLICES]
SAMPLE_TEST = re.compile(r"app.(users|posts|orders)|/(users|posts|orders)")
WIRING_OF_SAMPLE = re.compile(r".*\b(?:users|posts|orders)\b.*\n")


def test_an_example_removed_by_hand_does_not_come_back(
    version: str, next_version: Path, tmp_path: Path
) -> None:
    service = releases.start(next_version, version, tmp_path / "service", {})
    assert (service / releases.CHANGED_EXAMPLE).is_file(), "the newer version changes it"
    for folder in SAMPLE_SLICES:
        shutil.rmtree(service / folder)
    samples = [*(service / "tests" / "contracts").glob("*.json")]
    assert samples
    for path in samples:
        path.unlink()
    wiring = service / "app" / "wiring.py"
    plugged_in = WIRING_OF_SAMPLE.findall(wiring.read_text())
    assert plugged_in
    wiring.write_text(WIRING_OF_SAMPLE.sub("", wiring.read_text()))
    rendering.commit(service, "Our own domain instead")
    releases.update(service)
    assert [name for name in SAMPLE_SLICES if (service / name).exists()] == []
    assert [path for path in samples if path.exists()] == []
    wired = WIRING_OF_SAMPLE.findall(without_template_side(wiring.read_text()))
    assert [line for line in wired if line in plugged_in] == []
    added = rendering.git(service, "ls-files", "--others", "--exclude-standard").splitlines()
    assert added, "the newer version adds something"
    for name in added:
        assert not SAMPLE_TEST.search((service / name).read_text()), f"{name} brings it back"


def without_template_side(text: str) -> str:
    """Return a text without the template's half of its conflicts."""
    return re.sub(r"^={7}\n.*?^>{7} after updating\n", "", text, flags=re.M | re.S)
