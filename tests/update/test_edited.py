"""What people did to a service survives an update, or stands in a conflict that git shows."""

import ast
import re
from collections.abc import Iterator
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
    for name in (released.CHANGED, "app/kafka/topics.py", released.DROPPED):
        at_the_end(service / name)
    for name in (*ADDED, released.ADDED):
        (service / name).write_text(f"# {OURS}\n")
    for name in DELETED:
        (service / name).unlink()
    rendering.commit(service, "The team's work")
    released.update(service)
    return service


ADDED = ["app/ours.py", "app/kafka/ours.py", "app/outbox/ours.py", "notes.md"]
DELETED = ["compose.yaml", "app/commands/dlq.py", "tests/integration/test_api.py"]


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
    for name in (released.CHANGED, "app/kafka/topics.py"):
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
    version: str, history: Path, tmp_path: Path
) -> None:
    service = released.start(history, version, tmp_path / "service", {"modules": ["outbox"]})
    at_the_end(service / "app" / "outbox" / "store.py")
    at_the_end(service / "app" / "kafka" / "topics.py")
    (service / "app" / "outbox" / "ours.py").write_text(f"# {OURS}\n")
    rendering.commit(service, "The team's work")
    released.update(service, "--data", "modules=[]")
    left = [path.name for path in (service / "app" / "outbox").iterdir()]
    assert left == ["ours.py"], "what the team added is not the module's"
    assert OURS in (service / "app" / "kafka" / "topics.py").read_text()
    assert " D app/outbox/store.py\n" in rendering.git(service, "status", "--porcelain")
    assert OURS in rendering.git(service, "show", "HEAD:app/outbox/store.py")


# What the example domain is made of, as a team deletes it by hand.
SAMPLE = [
    "app/domain/orders.py",
    "app/repositories/orders.py",
    "app/repositories/users.py",
    "app/routers/orders.py",
    "app/routers/users.py",
    "app/services/orders.py",
    "app/services/users.py",
    "app/events/handlers.py",
    "tests/contract/test_orders.py",
    "tests/contract/test_users.py",
    "tests/integration/test_api.py",
    "tests/unit/test_domain.py",
]
WIRED = re.compile(r".*\b(?:orders|users|order_\w+)\b.*\n")


def test_an_example_domain_that_was_removed_by_hand_does_not_come_back(
    version: str, ahead: Path, tmp_path: Path
) -> None:
    service = released.start(ahead, version, tmp_path / "service", {})
    for name in SAMPLE:
        (service / name).unlink()
    wiring = service / "app" / "wiring.py"
    plugged_in = WIRED.findall(wiring.read_text())
    assert plugged_in
    wiring.write_text(WIRED.sub("", wiring.read_text()))
    rendering.commit(service, "Our own domain instead")
    released.update(service)
    assert [name for name in SAMPLE if (service / name).exists()] == []
    # What is new about it may come, since Copier cannot know that the team has no use for it.
    wired = WIRED.findall(as_the_team_had_it(wiring.read_text()))
    assert [line for line in wired if line in plugged_in] == []
    added = rendering.git(service, "ls-files", "--others", "--exclude-standard").splitlines()
    assert added, "the newer version adds something"
    removed = {name.removesuffix(".py").replace("/", ".") for name in SAMPLE}
    for name in added:
        if name.endswith(".py"):
            assert set(imported(service / name)).isdisjoint(removed), f"{name} brings it back"


def as_the_team_had_it(text: str) -> str:
    """A file without the template's half of its conflicts."""
    return re.sub(r"^={7}\n.*?^>{7} after updating\n", "", text, flags=re.M | re.S)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
