"""Render a service, install the peers beside it, run the areas, and write the results.

python -m benchmarks PATH [--area AREA ...] [--rounds N] [--scale X] [--quick] [--resume]
                          [--page] [--into FOLDER]

Results of all areas (but soak, which takes an hour) replace those in benchmarks/results, their
plots and docs/benchmarks.md; so does a whole soak, `--area soak --rounds 1`, for its own section.
Those of some areas, or of a quick run, go to a folder of their own.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import generation_peers
from benchmarks.generation import workplace
from benchmarks.plot import svg
from benchmarks.report import render_report
from benchmarks.results import Area, results
from tests import matrix, rendering
from tests.rendering import ROOT, git
from tests.shell import environment

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
# In a rendered service's environment; and one without servers, in this one.
INSIDE = [
    "produce",
    "consume",
    "outbox",
    "orders",
    "event_store",
    "projection",
    "tracing",
    "commands",
    "start",
    "effect",
    "cluster",
]
AREAS = [*INSIDE, "generation"]
# Only where they are asked for, because they take long.
APART = ["soak"]
PEERS = ["faststream", "faststream-outbox", "confluent-kafka", "eventsourcing"]
VARIANTS = [[], ["outbox"], ["outbox", "cqrs"], ["outbox", "event_sourcing"]]
# Settings that would replace the servers of the run.
SERVERS = "KAFKA_|DATABASE_|SERVICE_NAME|OUTBOX_|OTEL_"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("path", type=Path, help="a folder for the service and the environments")
    parser.add_argument("--area", choices=[*AREAS, *APART], action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the amount of work")
    parser.add_argument("--quick", action="store_true", help="one round, a fiftieth of the work")
    parser.add_argument(
        "--resume", action="store_true", help="keep the measurements of an interrupted run"
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="only write the page and the plots again, from latest.json",
    )
    parser.add_argument("--into", type=Path, help="where to write results and plots")
    parser.add_argument(
        "--before",
        help="the version or commit with which to compare, instead of the newest version",
    )
    chosen = parser.parse_args()
    if chosen.page:
        write(published(), RESULTS, PAGE)
        return 0
    before = chosen.before or newest_version()
    if chosen.quick:
        chosen.rounds, chosen.scale = 1, 0.02
    complete = not chosen.area and not chosen.quick
    apart = chosen.area == APART and not chosen.quick and chosen.scale >= 1
    into = chosen.into or (RESULTS if complete or apart else chosen.path / "results")
    work = chosen.path.resolve()
    if not chosen.resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    areas = [
        area
        for name in [*AREAS, *APART]
        if name in (chosen.area or AREAS)
        for area in [measure(name, work, chosen.rounds, chosen.scale, before)]
    ]
    found = results(
        areas,
        machine(),
        datetime.now(UTC).strftime("%Y-%m-%d"),
        git(ROOT, "rev-parse", "HEAD").strip(),
        rounds=chosen.rounds,
        scale=chosen.scale,
        versions=versions(work),
        before=before,
    )
    if into == RESULTS:
        found = with_published(found, apart)
    write(found, into.resolve(), PAGE if into == RESULTS else into / "benchmarks.md")
    failed = [f"{area.name}: {n}" for area in areas for n, s in area.sides.items() if s.failed]
    print(*(f"failed: {each}" for each in failed), sep="\n")
    return 1 if failed else 0


def published() -> dict[str, Any]:
    """Return the results that the page shows. `apart` has those of a whole soak, a run of its own."""
    read: dict[str, Any] = json.loads((RESULTS / "latest.json").read_text())
    return read


def with_published(found: dict[str, Any], apart: bool) -> dict[str, Any]:
    """Return `found` with what it does not replace: the soak, or everything else."""
    before = published()
    if apart:
        return {**before, "apart": found}
    return {**found, **({"apart": before["apart"]} if "apart" in before else {})}


def write(found: dict[str, Any], into: Path, documentation: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "latest.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, text in render_files(found).items():
        (documentation if name == PAGE.name else into / name).write_text(text)
    print(f"wrote {into / 'latest.json'} and {documentation}")


def render_files(found: dict[str, Any]) -> dict[str, str]:
    """Return the plots and the page of some results, by file name."""
    runs = [found, *([found["apart"]] if "apart" in found else [])]
    areas = [Area.of(each) for run in runs for each in run["areas"]]
    return {**{f"{area.name}.svg": svg(area) for area in areas}, PAGE.name: render_report(found)}


def measure(area: str, work: Path, rounds: int, scale: float, before: str) -> Area:
    output = work / f"{area}.json"
    if output.exists():
        return Area.of(json.loads(output.read_text()))
    print(f"\n== {area} ==", flush=True)
    if area == "generation":
        with workplace() as folder:
            measured = generation_peers.measure(folder, generator(work), rounds)
        output.write_text(json.dumps(measured.as_json()))
        return measured
    python = service(work, before)
    script = Path(__file__).with_name(f"{area}.py")
    subprocess.run(
        (python, script, "--rounds", str(rounds), "--scale", str(scale), "--json", output),
        cwd=work / "service",
        env={**environment(SERVERS), "BENCHMARK_VARIANTS": str(work / "variants")},
        check=True,
    )
    return Area.of(json.loads(output.read_text()))


def service(work: Path, before: str) -> Path:
    """Render a service with every module, the peers, and another version; return its Python."""
    folder = work / "service"
    python = folder / ".venv" / "bin" / "python"
    if not folder.exists():
        template = rendering.snapshot(work / "template")
        modules = list(matrix.ends()[-1].modules)
        rendering.render(template, folder, {"modules": modules})
        for variant in VARIANTS:
            into = work / "variants" / ("-".join(variant) or "base")
            rendering.render(template, into, {"modules": variant})
        if before:
            answers = {"modules": ["outbox"]}
            rendering.render(ROOT, work / "variants" / "before", answers, version=before)
        uv("sync", "--no-python-downloads", "--python", sys.executable, cwd=folder)
        uv("pip", "install", "--python", python, "--group", f"{ROOT / 'pyproject.toml'}:bench")
    return python


def newest_version() -> str:
    """Return the newest version of the template, or '' if there is none yet."""
    tags = git(ROOT, "tag", "--list", "v*", "--sort=-version:refname").split()
    return tags[0] if tags else ""


def generator(work: Path) -> Path:
    """Make an environment for fastapi-template, which needs older versions."""
    folder = work / "generator"
    uv("venv", "--clear", "--no-python-downloads", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    uv("pip", "install", "--python", python, "--group", f"{ROOT / 'pyproject.toml'}:generator")
    return folder


def uv(*arguments: object, cwd: Path | None = None) -> str:
    command = ("uv", *(str(argument) for argument in arguments), "--quiet")
    return subprocess.run(
        command, cwd=cwd, env=environment(SERVERS), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def machine() -> dict[str, object]:
    """Describe the machine without identifying it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def versions(work: Path) -> dict[str, str]:
    found = {"copier": version("copier")}
    for folder in (work / "service" / ".venv", work / "generator"):
        if folder.exists():
            names = [*PEERS, "aiokafka", "fastapi-template"]
            listed = json.loads(
                uv("pip", "list", "--python", folder / "bin" / "python", "--format", "json")
            )
            found |= {each["name"]: each["version"] for each in listed if each["name"] in names}
    return found


if __name__ == "__main__":
    sys.exit(main())
