"""How long Copier takes to render this template, and to update it, against one of one file.

Copier's own start is most of a copy, and its git commands most of an update, so the ratios say what
this template adds. The promises are that `copier copy --defaults` stays below 2, and `copier update`
of a service that nobody edited below 2.5. All are timed in one run, taking turns:
`python benchmarks/generation.py`.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISES = {"copy": 2.0, "update": 2.5}
AUTHOR = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time a copy with default answers, and an update.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = {"this template": own_template(folder), "one file": one_file(folder)}
        services = {label: service_of(template) for label, template in templates.items()}
        timed: dict[tuple[str, str], Callable[[], float]] = {}
        for label, template in templates.items():
            timed["copy", label] = partial(timed_copy, template, folder / "copy")
            timed["update", label] = partial(timed_update, services[label])
        seconds: dict[tuple[str, str], list[float]] = {what: [] for what in timed}
        for round_number in range(rounds + 1):
            for what, measure in timed.items():
                taken = measure()
                if round_number:  # the first round warms caches
                    seconds[what].append(taken)
    kept = [report(what, seconds, promise) for what, promise in PROMISES.items()]
    return 0 if all(kept) else 1


def report(what: str, seconds: dict[tuple[str, str], list[float]], promise: float) -> bool:
    """Print one comparison. Tells whether the promise is kept."""
    medians = []
    for label in ("this template", "one file"):
        taken = seconds[what, label]
        medians.append(statistics.median(taken))
        least = min(taken)
        print(
            f"{what:<6} {label:<13} median {medians[-1]:.2f} s   least {least:.2f} s   n={len(taken)}"
        )
    ratio = medians[0] / medians[1]
    print(f"{what:<6} ratio of the medians: {ratio:.2f} (promised: at most {promise:g})")
    return ratio <= promise


def own_template(folder: Path) -> Path:
    clone = folder / "clone"
    git(folder, "clone", "--quiet", str(ROOT), str(clone))
    add_versions(clone, clone / "template" / "README.md.jinja")
    return clone


def one_file(folder: Path) -> Path:
    template = folder / "one-file"
    template.mkdir()
    (template / "copier.yml").write_text("name:\n  type: str\n  default: world\n")
    (template / "{{ _copier_conf.answers_file }}.jinja").write_text(
        "{{ _copier_answers | to_nice_yaml }}"
    )
    (template / "hello.txt.jinja").write_text("Hello, {{ name }}.\n")
    git(template, "init", "--quiet")
    add_versions(template, template / "hello.txt.jinja")
    return template


def add_versions(template: Path, changed: Path) -> None:
    """What is there as version 1000.0.0, and 1001.0.0 with one line more."""
    commit(template, "v1000.0.0")
    changed.write_text(f"{changed.read_text()}\nOne line more.\n")
    commit(template, "v1001.0.0")
    # One pack, as in a clone from elsewhere: Copier clones the template at every copy, three times
    # at an update, and thousands of single objects would be copied one by one.
    git(template, "gc", "--quiet")


def commit(repository: Path, tag: str) -> None:
    git(repository, "add", "--all")
    git(repository, *AUTHOR, "commit", "--quiet", "--allow-empty", "--message", tag)
    git(repository, "tag", tag)


def service_of(template: Path) -> Path:
    """A service of the first of the two versions, under version control."""
    service = template.with_name(f"{template.name}-service")
    copier(template.parent, "copy", "--vcs-ref", "v1000.0.0", str(template), str(service))
    git(service, "init", "--quiet")
    commit(service, "start")
    return service


def timed_copy(template: Path, destination: Path) -> float:
    shutil.rmtree(destination, ignore_errors=True)
    return copier(template.parent, "copy", str(template), str(destination))


def timed_update(service: Path) -> float:
    git(service, "reset", "--quiet", "--hard")
    git(service, "clean", "-d", "--force", "--quiet")
    taken = copier(service, "update")
    answers = (service / ".copier-answers.yml").read_text()
    assert "_commit: v1001.0.0" in answers, answers
    return taken


def copier(folder: Path, command: str, *arguments: str) -> float:
    whole = (sys.executable, "-m", "copier", command, "--quiet", "--defaults", *arguments)
    start = time.perf_counter()
    subprocess.run(whole, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(("git", *arguments), cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
