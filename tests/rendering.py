"""Renders the template as users do: with Copier's command line, from a git repository."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent

# Commits of the tests do not depend on who runs them, nor on hooks and signing set up by them.
GIT_ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "Template Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.com",
    "GIT_COMMITTER_NAME": "Template Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.com",
}

Answers = Mapping[str, object]


class UnknownQuestion(Exception):
    """An answer to a question that copier.yml does not ask. Copier would ignore it silently."""


def configuration(root: Path = ROOT) -> dict[str, Any]:
    """Read copier.yml, settings and questions."""
    loaded: dict[str, Any] = yaml.safe_load((root / "copier.yml").read_text())
    return loaded


def questions(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    return {
        name: question for name, question in configuration(root).items() if not name.startswith("_")
    }


def asked(repository: Path, version: str | None = None) -> set[str]:
    """Return the names of the questions, now or in a version or commit."""
    if version is None:
        return set(questions(repository))
    loaded = yaml.safe_load(git(repository, "show", f"{version}:copier.yml"))
    return {name for name in loaded if not name.startswith("_")}


def git(repository: Path, *arguments: str) -> str:
    """Run git in `repository`. Raises CalledProcessError."""
    return subprocess.run(
        ("git", *arguments),
        cwd=repository,
        env=GIT_ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def snapshot(destination: Path, tag: str = "v0.0.1") -> Path:
    """Make a repository at `destination` whose only commit is the working tree.

    So a run sees one state even if files are edited meanwhile, and renderings can record a version.
    """
    write_working_tree(destination)
    git(destination, "init", "--quiet", "--initial-branch", "main")
    commit(destination, "Working tree", tag)
    return destination


def write_working_tree(destination: Path) -> None:
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a deletion may not be committed yet
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)


def commit(repository: Path, message: str, tag: str | None = None) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", message)
    if tag:
        git(repository, "tag", tag)


def copier(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Copier's command line without a terminal and without --trust."""
    return subprocess.run(
        (sys.executable, "-m", "copier", *arguments),
        cwd=cwd,
        env=GIT_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def copy(
    repository: Path, destination: Path, answers: Answers, *, version: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `copier copy --defaults` with these answers, for the newest version or the given one.

    Raises UnknownQuestion if there is an answer to a question that does not exist.
    """
    if unknown := answers.keys() - asked(repository, version):
        raise UnknownQuestion(f"copier.yml has no question {', '.join(sorted(unknown))}")
    data = [f"--data={name}={as_data(value)}" for name, value in answers.items()]
    reference = ["--vcs-ref", version] if version else []
    return copier("copy", "--defaults", *reference, *data, str(repository), str(destination))


def as_data(value: object) -> str:
    # JSON, because YAML ends a lone value with "...", and Copier would take "false\n..." for true.
    return value if isinstance(value, str) else json.dumps(value)


def render(
    repository: Path, destination: Path, answers: Answers, *, version: str | None = None
) -> Path:
    """Render a service and return its path. Fails with Copier's message."""
    result = copy(repository, destination, answers, version=version)
    assert result.returncode == 0, result.stderr
    return destination


def files(folder: Path) -> list[Path]:
    """List the files below `folder`, relative to it, without those of git."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path.parts[0] != ".git")
