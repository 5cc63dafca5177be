"""The template as users find it: with released versions, and newer ones on top."""

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from tests import rendering
from tests.rendering import ROOT, Answers

VERSIONS: Mapping[str, str] = yaml.safe_load(Path(__file__).with_name("versions.yml").read_text())
WORKING_TREE = "v1000.0.0"
NEXT_VERSION = "v1001.0.0"

# The changes of the next version.
CHANGED_FILE = "app/platform/health.py"
CHANGED_DOCSTRING = "Said anew by the template."
ADDED_FILE = "SECURITY.md"
REMOVED_FILE = "docs/consumer.md"
RENAMED_FILE = ("app/platform/logs.py", "app/platform/logging.py")
# Part of the example, which a team may have deleted.
CHANGED_EXAMPLE = "app/orders/domain.py"
WIRING_LINE = "        users.component,\n"
CONTRACTS_LINE = "    # The example:\n"
PLACE_OF_SLICES = re.compile(r"^ *# Your own slices\b.*\n", re.MULTILINE)
NEW_QUESTION = """
licence:
  type: str
  help: Which licence?
  default: MIT
"""


class HistoryMissing(Exception):
    """This clone is shallow: it lacks the commit of a released version."""


def history(destination: Path) -> Path:
    """Clone this repository, and commit the working tree as the newest version."""
    for version, commit in VERSIONS.items():
        require_commit(version, commit)
    rendering.git(destination.parent, "clone", "--quiet", str(ROOT), str(destination))
    rendering.git(destination, "checkout", "--quiet", "-B", "main")
    for version, commit in VERSIONS.items():
        rendering.git(destination, "tag", "--force", f"v{version}", commit)
    rendering.git(destination, "rm", "-r", "--quiet", ".")
    rendering.write_working_tree(destination)
    rendering.git(destination, "add", "--all")
    rendering.git(destination, "commit", "--quiet", "--allow-empty", "--message", "Working tree")
    rendering.git(destination, "tag", WORKING_TREE)
    return destination


def require_commit(version: str, commit: str, clone: Path = ROOT) -> None:
    try:
        rendering.git(clone, "cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        raise HistoryMissing(
            f"the commit of version {version}, {commit}, is not in this clone;"
            " fetch the history with `git fetch --unshallow`"
        ) from None


def next_version(history: Path, destination: Path) -> Path:
    """Add a version with the changes that are listed above."""
    rendering.git(history.parent, "clone", "--quiet", str(history), str(destination))
    template = destination / "template"
    changed = template / CHANGED_FILE
    changed.write_text(re.sub(r"\A.*", f'"""{CHANGED_DOCSTRING}"""', changed.read_text()))
    example = template / CHANGED_EXAMPLE
    example.write_text(f"{example.read_text()}\n# {CHANGED_DOCSTRING}\n")
    wiring = template / "app" / "wiring.py.jinja"
    before, wired, after = wiring.read_text().partition(WIRING_LINE)
    assert wired
    wiring.write_text(f"{before}        # {CHANGED_DOCSTRING}\n{wired}{after}")
    project = template / "pyproject.toml.jinja"
    contracts = project.read_text()
    assert contracts.count(CONTRACTS_LINE) == 2
    project.write_text(
        contracts.replace(CONTRACTS_LINE, f"{CONTRACTS_LINE}    # {CHANGED_DOCSTRING}\n")
    )
    (template / ADDED_FILE).write_text("Report to the template's people.\n")
    (template / REMOVED_FILE).unlink()
    old, new = RENAMED_FILE
    (template / old).rename(template / new)
    asked = destination / "copier.yml"
    asked.write_text(asked.read_text() + NEW_QUESTION)
    (template / "LICENCE.jinja").write_text("{{ licence }}\n")
    rendering.commit(destination, "Ahead", NEXT_VERSION)
    return destination


def with_own_slice(service: Path, name: str) -> dict[Path, str]:
    """Return the texts that list slices, with the lines of the slice `name` added as the README says."""
    listed = {
        service / "app" / "wiring.py": [f"from app import {name}", f"        {name}.component,"],
        service / "pyproject.toml": [f'    "app.{name}",'] * 2,
    }
    return {path: _below_places(path.read_text(), lines) for path, lines in listed.items()}


def _below_places(text: str, lines: Iterable[str]) -> str:
    left = iter(lines)
    added = PLACE_OF_SLICES.sub(lambda place: f"{place[0]}{next(left)}\n", text)
    assert not list(left), "there is no place for each line"
    return added


def known_answers(version: str, answers: Answers) -> Answers:
    """Return the answers to questions of that version."""
    require_commit(version, VERSIONS[version])
    asked = rendering.asked(ROOT, VERSIONS[version])
    return {name: answer for name, answer in answers.items() if name in asked}


def start(repository: Path, version: str, destination: Path, answers: Answers) -> Path:
    """Render a service from a released version, and put it under version control."""
    rendering.render(
        repository, destination, known_answers(version, answers), version=f"v{version}"
    )
    commit_service(destination)
    return destination


def commit_service(service: Path) -> None:
    """Put a new service under version control."""
    rendering.git(service, "init", "--quiet", "--initial-branch", "main")
    rendering.commit(service, "Start")


def update(service: Path, *arguments: str) -> None:
    result = rendering.copier("update", "--defaults", *arguments, cwd=service)
    assert result.returncode == 0, result.stderr


def differing_files(service: Path, other: Path) -> list[Path]:
    """List the files that differ, or that only one of the two has."""
    ours, theirs = set(rendering.files(service)), set(rendering.files(other))
    changed = {
        path
        for path in ours & theirs
        if (service / path).read_bytes() != (other / path).read_bytes()
    }
    return sorted((ours ^ theirs) | changed)
