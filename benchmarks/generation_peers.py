"""`copier copy` and `copier update` of every variant, as whole processes on the command line.

- *one file*: a template that renders one file. Copier's own start is most of that.
- *copy*: a new service, with the default answers and the modules named.
- *update*: a service of the variant, rendered and committed, gets one changed line of the template.
- *fastapi-template*: a generator without Copier, with PostgreSQL, SQLAlchemy, migrations, Kafka,
  example routers and GitHub's CI. Its hook would go on to install all dependencies, for as long as
  the network takes; uv is kept offline here, so that it stops after rendering and `git init`.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.generation import one_file, own_template, timed_copy
from benchmarks.results import Area, Comparison, Samples, number
from tests.matrix import codes
from tests.rendering import GIT_ENVIRONMENT, commit, git

FLOOR, PEER = "one file", "fastapi-template"
PEER_OPTIONS = [
    *("--quiet", "--force", "--name", "peer_service", "--api-type", "rest", "--db", "postgresql"),
    *("--orm", "sqlalchemy", "--ci", "github", "--kafka", "--migrations", "--dummy", "--routers"),
    "--prometheus",
]

OWN: dict[str, str] = {}

Timed = Callable[[], float]


def measure(folder: Path, peer: Path | None, rounds: int) -> Area:
    """All sides in turns. `peer` is the folder of fastapi_template's environment."""
    sides = plan(folder, peer)
    area = Area("generation", "Generation", __doc__ or "", comparisons(sides))
    for round_ in range(1, rounds + 1):
        names = list(sides) if round_ % 2 else list(reversed(sides))
        for name in names:
            samples = area.sides.setdefault(name, Samples("s"))
            if samples.failed:
                continue
            try:
                samples.add(sides[name]())
            except subprocess.CalledProcessError as error:  # said in its row
                samples.failed = f"{error}: {(error.stderr or b'')[-200:]!r}"
            said = samples.failed or f"{number(samples.values[-1])} s"
            print(f"round {round_}: {name}: {said}", flush=True)
    area.sides = {name: area.sides[name] for name in sides if name in area.sides}
    return area


def plan(folder: Path, peer: Path | None) -> dict[str, Timed]:
    template, floor = own_template(folder), one_file(folder)
    git(template, "tag", "v1.0.0")
    sides: dict[str, Timed] = {FLOOR: lambda: timed_copy(floor, folder / "one-file-copy")}
    modules = {variant.code: variant.modules for variant in codes() if variant.sample_domain}
    variants = list(modules)
    for name in variants:
        sides[f"copy, {name}"] = copying(template, folder / "copy", modules[name])
    prepared = {
        name: prepare(template, folder / "prepared" / name, modules[name]) for name in variants
    }
    readme = template / "template" / "README.md.jinja"
    readme.write_text(readme.read_text() + "\nOne line more.\n")
    commit(template, "One line more", "v1.1.0")
    for name in variants:
        sides[f"update, {name}"] = updating(prepared[name], folder / "update")
    if peer is not None:
        sides[PEER] = generating(peer, folder / "peer")
    return sides


def copying(template: Path, destination: Path, modules: tuple[str, ...]) -> Timed:
    def copy() -> float:
        shutil.rmtree(destination, ignore_errors=True)
        options = ["--quiet", "--defaults", f"--data=modules=[{', '.join(modules)}]"]
        return timed(sys.executable, "-m", "copier", "copy", *options, template, destination)

    return copy


def prepare(template: Path, destination: Path, modules: tuple[str, ...]) -> Path:
    """A service as it is before an update: rendered and committed."""
    copying(template, destination, modules)()
    git(destination, "init", "--quiet")
    commit(destination, "Rendered")
    return destination


def updating(prepared: Path, destination: Path) -> Timed:
    def update() -> float:
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(prepared, destination)
        return timed(
            *(sys.executable, "-m", "copier", "update", "--quiet", "--defaults"), cwd=destination
        )

    return update


def generating(environment: Path, folder: Path) -> Timed:
    def generate() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command = environment / "bin" / "fastapi_template"
        offline = {"UV_OFFLINE": "1", "UV_NO_CACHE": "1", "UV_PYTHON_DOWNLOADS": "never"}
        return timed(command, *PEER_OPTIONS, cwd=folder, more=offline)

    return generate


def timed(*command: object, cwd: Path | None = None, more: Mapping[str, str] = OWN) -> float:
    start = time.perf_counter()
    subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**GIT_ENVIRONMENT, **more},
        stdin=subprocess.DEVNULL,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def comparisons(sides: dict[str, Timed]) -> list[Comparison]:
    """Only the copy has a promise: an update renders three times, and merges."""
    copies = [name for name in sides if name.startswith("copy, ")]
    updates = [name for name in sides if name.startswith("update, ")]
    return [
        *(Comparison(f"{name}, beside one file", name, FLOOR, "<= 2") for name in copies),
        *(Comparison(f"{name}, beside one file copied", name, FLOOR) for name in updates),
        *(Comparison(f"{name}, beside {PEER}", name, PEER) for name in copies),
    ]
