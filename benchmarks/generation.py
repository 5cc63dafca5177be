"""Times of `copier copy` and `copier update` for this template, compared with templates of one-line files.

Copier spends about 4 ms on each file that it renders, whatever is in it (decision 37). The promises
are about the rest, so the other template has the same paths, with one line in each file: `copier copy
--defaults` takes at most 1.25 times as long, and `copier update` of a service that nobody edited 1.4. A
template of a single file is timed, too. All are timed in one run, in alternating order, each in a folder of
its own: `python benchmarks/generation.py`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PROMISES = {"copy": 1.25, "update": 1.4}
OURS, SAME, ONE = "this template", "the same paths", "one file"
ONE_FILE = ["hello.txt"]
OLDER, NEWER = "v1000.0.0", "v1001.0.0"
AUTHOR = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")
COPIER = (sys.executable, "-m", "copier")
QUIETLY = ("--quiet", "--defaults")
_ROOM_BYTES = 4_000_000_000


class Taken(NamedTuple):
    """The elapsed time of a process, and the processor time of it and its children."""

    seconds: float
    processor_seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a copy with default answers, and an update.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    with workplace() as folder:
        timed: dict[tuple[str, str], Callable[[], Taken]] = {}
        ours = own_template(folder)
        services = {OURS: service_of(ours)}
        others = {SAME: paths_of(services[OURS]), ONE: ONE_FILE}
        templates = {OURS: ours} | {name: plain(folder, name, others[name]) for name in others}
        services |= {name: service_of(templates[name]) for name in others}
        for label, template in templates.items():
            timed["copy", label] = partial(timed_copy, template, folder)
            timed["update", label] = partial(timed_update, services[label], folder)
        seconds: dict[tuple[str, str], list[Taken]] = {measurement: [] for measurement in timed}
        for round_number in range(rounds + 1):
            for measurement in list(timed) if round_number % 2 else list(reversed(timed)):
                taken = timed[measurement]()
                if round_number:  # the first round warms caches
                    seconds[measurement].append(taken)
    kept = [report(measurement, seconds, promise) for measurement, promise in PROMISES.items()]
    return 0 if all(kept) else 1


def report(measurement: str, taken: dict[tuple[str, str], list[Taken]], promise: float) -> bool:
    """Print one comparison; return whether the promise is kept."""
    for label in (OURS, SAME, ONE):
        seconds = [each.seconds for each in taken[measurement, label]]
        print(
            f"{measurement:<6} {label:<14} median {statistics.median(seconds):.2f} s"
            f"   spread {min(seconds):.2f} - {max(seconds):.2f} s   n={len(seconds)}"
        )
    ratios = {
        other: ratio_of(
            [each.seconds for each in taken[measurement, side]] for side in (OURS, other)
        )
        for other in (SAME, ONE)
    }
    # It moves less where the disk, or other work, makes the whole waver.
    processor = ratio_of(
        [each.processor_seconds for each in taken[measurement, side]] for side in (OURS, SAME)
    )
    print(
        f"{measurement:<6} beside the same paths: {ratios[SAME]:.2f} (promised: at most {promise:g}),"
        f" by processor time {processor:.2f}; beside one file: {ratios[ONE]:.2f}"
    )
    return ratios[SAME] <= promise


def ratio_of(sides: Iterable[list[float]]) -> float:
    ours, floor = (statistics.median(side) for side in sides)
    return ours / floor


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a folder for all files of the run, in memory if there is room.

    On a disk, each round would pay for those before it: ext4 passes over the inodes of files that were
    deleted in the last minutes, and Copier deletes five clones of the template with each update.
    """
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as name:
        before, tempfile.tempdir = tempfile.tempdir, name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def own_template(folder: Path) -> Path:
    clone = folder / "clone"
    git(folder, "clone", "--quiet", str(ROOT), str(clone))
    add_versions(clone, clone / "template" / "README.md.jinja")
    return clone


def plain(folder: Path, name: str, paths: Sequence[str]) -> Path:
    """Make a template of files of one line, and the one with the answers."""
    template = folder / f"plain-{name.replace(' ', '-')}"
    template.mkdir()
    (template / "copier.yml").write_text("name:\n  type: str\n  default: world\n")
    (template / "{{ _copier_conf.answers_file }}.jinja").write_text(
        "{{ _copier_answers | to_nice_yaml }}"
    )
    for path in paths:
        file = template / f"{path}.jinja"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("Hello, {{ name }}.\n")
    git(template, "init", "--quiet")
    add_versions(template, template / f"{paths[0]}.jinja")
    return template


def paths_of(service: Path) -> list[str]:
    """Return the paths of a service's files, without the one of the answers."""
    listed = subprocess.check_output(("git", "ls-files"), cwd=service, text=True).splitlines()
    return [path for path in listed if path != ".copier-answers.yml"]


def add_versions(template: Path, changed: Path) -> None:
    """Tag the template's present state as a version, and add a newer one with one more line."""
    commit(template, OLDER)
    changed.write_text(f"{changed.read_text()}\nOne line more.\n")
    commit(template, NEWER)
    # One pack, as in a clone from elsewhere: Copier clones the template at every copy, three times
    # at an update, and thousands of single objects would be copied one by one.
    git(template, "gc", "--quiet")


def commit(repository: Path, tag: str) -> None:
    git(repository, "add", "--all")
    git(repository, *AUTHOR, "commit", "--quiet", "--allow-empty", "--message", tag)
    git(repository, "tag", tag)


def service_of(template: Path) -> Path:
    """Render a service of the first of the two versions, under version control."""
    service = template.with_name(f"{template.name}-service")
    timed(*COPIER, "copy", *QUIETLY, "--vcs-ref", OLDER, template, service)
    git(service, "init", "--quiet")
    commit(service, "start")
    return service


def timed_copy(template: Path, folder: Path) -> Taken:
    return timed(*COPIER, "copy", *QUIETLY, template, fresh(folder))


def timed_update(
    service: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Taken:
    updated = fresh(folder)
    shutil.copytree(service, updated)
    taken = timed(*COPIER, "update", *QUIETLY, cwd=updated, env=environment)
    answers = (updated / ".copier-answers.yml").read_text()
    assert f"_commit: {NEWER}" in answers, answers
    return taken


def fresh(folder: Path) -> Path:
    """Return a new folder. Folders are deleted at the end, so that no measurement pays for it."""
    return Path(tempfile.mkdtemp(dir=folder)) / "service"


def timed(*command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Taken:
    """Time a whole process, after earlier writes have reached the disk."""
    # Python's bytecode is kept, as it is where Copier is installed: to compile all of it each time
    # would double what the smallest copy takes, and flatter every ratio to it.
    environment = {**(os.environ if env is None else env), "TMPDIR": tempfile.gettempdir()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    os.sync()
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    processor = after.children_user + after.children_system
    return Taken(wall, processor - before.children_user - before.children_system)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(("git", *arguments), cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
