"""Finish a rendered service: a git repository, a lock file, a first commit.

Optional, and safe to repeat:

    python hooks/finish.py PATH
"""

import argparse
import subprocess
import sys
from pathlib import Path


class StepFailed(Exception):
    """A step failed. The message says why and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Finish a rendered service.")
    parser.add_argument("path", type=Path, help="the folder of the service")
    service: Path = parser.parse_args().path.resolve()
    try:
        finish(service)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def finish(service: Path) -> None:
    """Do the steps that are still to do, and print each.

    Raises StepFailed at the first step that fails; the steps before it remain done.
    """
    if not (service / ".copier-answers.yml").is_file():
        raise StepFailed(f"{service} is no rendered service: it has no .copier-answers.yml")
    own_repository = start_repository(service)
    lock(service)
    if own_repository:
        commit(service)


def start_repository(service: Path) -> bool:
    """Make `service` a repository unless it is part of one; return whether it has its own."""
    inside = run(service, "git", "rev-parse", "--show-toplevel")
    if inside.returncode != 0:
        checked(service, "git", "init", "--quiet", "--initial-branch", "main")
        say("git", "started a repository")
        return True
    top = Path(inside.stdout.strip()).resolve()
    if top != service:
        say("git", f"left alone: the folder is part of the repository {top}")
        return False
    say("git", "nothing to do: it is a repository already")
    return True


def lock(service: Path) -> None:
    lock_file = service / "uv.lock"
    before = lock_file.read_bytes() if lock_file.exists() else None
    checked(service, "uv", "lock", "--quiet")
    if before is None:
        say("lock", "wrote uv.lock")
    elif before == lock_file.read_bytes():
        say("lock", "nothing to do: uv.lock is current")
    else:
        say("lock", "brought uv.lock up to date; commit it")


def commit(service: Path) -> None:
    if run(service, "git", "rev-parse", "--verify", "--quiet", "HEAD").returncode == 0:
        say("commit", "nothing to do: the repository has commits")
        return
    if run(service, "git", "var", "GIT_COMMITTER_IDENT").returncode != 0:
        raise StepFailed(
            "commit: git does not know who you are. Set it, and run this again:\n"
            "  git config --global user.name 'Your Name'\n"
            "  git config --global user.email you@example.com"
        )
    checked(service, "git", "add", "--all")
    checked(service, "git", "commit", "--quiet", "--message", "Start the service from its template")
    say("commit", "made the first commit")


def run(service: Path, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=service, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StepFailed(f"{command[0]} is not installed, or not on the PATH") from None


def checked(service: Path, *command: str) -> None:
    result = run(service, *command)
    if result.returncode != 0:
        raise StepFailed(f"{' '.join(command)} failed:\n{result.stderr or result.stdout}".rstrip())


def say(step: str, what: str) -> None:
    print(f"{step:<7} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
