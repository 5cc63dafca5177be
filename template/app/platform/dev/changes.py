"""The files of the platform that differ from what the template rendered."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from app.platform.dev.errors import DevelopmentServerError

PLATFORM = Path("app/platform")
ANSWERS = ".copier-answers.yml"
_COPIER = "copier>=9.18,<10"
_TIMEOUT_SECONDS = 300


class TemplateUnavailable(DevelopmentServerError):
    """The template cannot be rendered in the version of this service."""


class Change(StrEnum):
    """The kind of change to a file of the platform."""

    EDITED = "edited"
    ADDED = "added"
    DELETED = "deleted"


def find_changes(project: Path) -> Mapping[Path, Change]:
    """Render the template in the version of `project`, and compare the files of the platform.

    Paths are relative to `project`. Raises TemplateUnavailable.
    """
    if not (project / ANSWERS).is_file():
        raise TemplateUnavailable(f"there is no {ANSWERS} here; run this in the service's folder")
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder)
        shutil.copy(project / ANSWERS, rendered)
        _render(rendered)
        before, after = _contents(rendered), _contents(project)
    return {
        path: _classify(before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def _classify(before: bytes | None, after: bytes | None) -> Change:
    if before is None:
        return Change.ADDED
    return Change.DELETED if after is None else Change.EDITED


def _render(folder: Path) -> None:
    copier = ["copier"] if shutil.which("copier") else ["uvx", _COPIER]
    command = [*copier, "recopy", "--quiet", "--defaults", "--overwrite", "--vcs-ref", ":current:"]
    try:
        done = subprocess.run(
            [*command, str(folder)], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except FileNotFoundError as error:
        raise TemplateUnavailable(
            "the template cannot be rendered: neither `copier` nor `uvx` is on the PATH; install uv"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TemplateUnavailable(f"the template cannot be rendered: {error}") from error
    if done.returncode != 0:
        output = done.stderr.strip().splitlines() or ["Copier printed nothing"]
        raise TemplateUnavailable(f"the template cannot be rendered: {output[-1]}")


def _contents(project: Path) -> dict[Path, bytes]:
    """Return the contents of the platform's files, except compiled Python."""
    files = (path for path in (project / PLATFORM).rglob("*") if path.is_file())
    return {
        path.relative_to(project): path.read_bytes()
        for path in files
        if "__pycache__" not in path.parts
    }
