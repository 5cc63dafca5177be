"""How long `copier copy --defaults` of this template takes, against a template of one file.

Copier's own start is most of both, so the ratio says what this template adds. The promise is that
it stays below 2. Both are timed in one run, taking turns: `python benchmarks/generation.py`.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMISE = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the rendering of the default answers.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = {"this template": own_template(folder), "one file": one_file(folder)}
        seconds: dict[str, list[float]] = {label: [] for label in templates}
        for round_number in range(rounds + 1):
            for label, template in templates.items():
                taken = timed_copy(template, folder / "rendered")
                if round_number:  # the first round warms caches
                    seconds[label].append(taken)
    for label, taken_by_round in seconds.items():
        median, least = statistics.median(taken_by_round), min(taken_by_round)
        print(f"{label:<14} median {median:.2f} s   least {least:.2f} s   n={rounds}")
    ratio = statistics.median(seconds["this template"]) / statistics.median(seconds["one file"])
    print(f"ratio of the medians: {ratio:.2f} (promised: at most {PROMISE:g})")
    return 0 if ratio <= PROMISE else 1


def own_template(folder: Path) -> Path:
    clone = folder / "clone"
    git(folder, "clone", "--quiet", str(ROOT), str(clone))
    return clone


def one_file(folder: Path) -> Path:
    template = folder / "one-file"
    template.mkdir()
    (template / "copier.yml").write_text("name:\n  type: str\n  default: world\n")
    (template / "hello.txt.jinja").write_text("Hello, {{ name }}.\n")
    git(template, "init", "--quiet")
    git(template, "add", "--all")
    author = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")
    git(template, *author, "commit", "--quiet", "--message", "One file")
    return template


def timed_copy(template: Path, destination: Path) -> float:
    shutil.rmtree(destination, ignore_errors=True)
    command = (sys.executable, "-m", "copier", "copy", "--quiet", "--defaults")
    start = time.perf_counter()
    subprocess.run((*command, str(template), str(destination)), check=True, capture_output=True)
    return time.perf_counter() - start


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(("git", *arguments), cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
