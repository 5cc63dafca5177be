"""`copier copy` and `copier update` of every variant, as whole processes on the command line.

- *one file*: a template that renders one file. Copier's own start is most of that.
- *the same paths*: a template with the paths of the service, and one line in each file. The rest is
  the price of what is in them, of questions, and of the paths of modules that are left out.
- *growth*: such a template with ten and a hundred files of one line. *A file more* costs the
  rest of a copy, without that start, by the number of files: here, and in this template with all its
  modules, whose files are longer.
- *copy*: a new service, with the default answers and the modules named.
- *update*: a service of the variant, rendered and committed, gets one changed line of the template;
  beside a service of the same paths, and one of one file, that get one, too.
- *fastapi-template*: a generator without Copier, with PostgreSQL, SQLAlchemy, migrations, Kafka,
  example routers and GitHub's CI. Its hook would go on to install all dependencies, for as long as
  the network takes; uv is kept offline here, so that it stops after rendering and `git init`.

Each takes place in a folder of its own, in memory where there is room: on a disk, files are slower to
create the more were deleted in the last minutes, and Copier deletes its clones of the template.
Python's bytecode is there, as it is wherever a package is installed.
"""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.generation import (
    COPIER,
    OLDER,
    ONE_FILE,
    PROMISES,
    QUIETLY,
    Taken,
    fresh,
    own_template,
    paths_of,
    plain,
    timed,
    timed_update,
)
from benchmarks.results import Area, Comparison, Samples, number
from tests.matrix import codes
from tests.rendering import GIT_ENVIRONMENT, commit, git

FLOOR, FLOOR_UPDATE, PEER = "one file", "one file, update", "fastapi-template"
SAME, SAME_UPDATE = "the same paths, copy", "the same paths, update"
WARMED = {FLOOR, FLOOR_UPDATE, PEER}  # in a round before the first: bytecode, and what is cached
GROWTH = {10: "one file, growth x10", 100: "one file, growth x100"}
ALL = "outbox-cqrs-event_sourcing"
MORE, MORE_PLAIN = "a file more, all modules", "one file, a file more"
PEER_OPTIONS = [
    *("--quiet", "--force", "--name", "peer_service", "--api-type", "rest", "--db", "postgresql"),
    *("--orm", "sqlalchemy", "--ci", "github", "--kafka", "--migrations", "--dummy", "--routers"),
    "--prometheus",
]

Timed = Callable[[], Taken]


def measure(folder: Path, peer: Path | None, rounds: int) -> Area:
    """Measure all sides in turns. `peer` is the folder of fastapi-template's environment."""
    sides = plan(folder, peer)
    area = Area("generation", "Generation", __doc__ or "", comparisons(sides))
    for round_ in range(rounds + 1):
        for name in list(sides) if round_ % 2 else list(reversed(sides)):
            samples = area.sides.setdefault(name, Samples("s"))
            if samples.failed or (round_ == 0 and name not in WARMED):
                continue
            try:
                taken = sides[name]().seconds
            except subprocess.CalledProcessError as error:  # said in its row
                samples.failed = f"{error}: {(error.stderr or b'')[-200:]!r}"
            else:
                if round_:
                    samples.add(taken)
            print(f"round {round_}: {name}: {samples.failed or f'{number(taken)} s'}", flush=True)
    area.sides = {name: area.sides[name] for name in sides}
    area.sides[MORE] = cost_of_a_file(
        area.sides[FLOOR], area.sides[f"copy, {ALL}"], len(paths_of(folder / "services" / ALL))
    )
    area.sides[MORE_PLAIN] = cost_of_a_file(area.sides[FLOOR], area.sides[GROWTH[100]], 100)
    return area


def cost_of_a_file(one: Samples, many: Samples, files: int) -> Samples:
    """Return the milliseconds for each file but the first, by round."""
    pairs = zip(one.values, many.values, strict=False)  # fewer where one failed
    each = [1000 * (longer - shorter) / (files - 1) for shorter, longer in pairs]
    return Samples("ms", each, failed=one.failed or many.failed)


def plan(folder: Path, peer: Path | None) -> dict[str, Timed]:
    template, floor = own_template(folder), plain(folder, FLOOR, ONE_FILE)
    modules = {variant.code: variant.modules for variant in codes() if variant.sample_domain}
    sides: dict[str, Timed] = {FLOOR: copying(floor, folder)}
    for files, name in GROWTH.items():
        paths = [f"hello-{number}.txt" for number in range(files)]
        sides[name] = copying(plain(folder, name, paths), folder)
    sides[FLOOR_UPDATE] = updating(service_of(floor, folder / "services" / "plain"), folder)
    for code in modules:
        service = service_of(template, folder / "services" / code, modules[code])
        sides[f"copy, {code}"] = copying(template, folder, modules[code])
        sides[f"update, {code}"] = updating(service, folder)
        same = plain(folder, code, paths_of(service))
        sides[f"{SAME}, {code}"] = copying(same, folder)
        service = service_of(same, folder / "services" / f"plain-{code}")
        sides[f"{SAME_UPDATE}, {code}"] = updating(service, folder)
    if peer is not None:
        sides[PEER] = generating(peer, folder)
    return sides


def copying(template: Path, folder: Path, modules: Sequence[str] = ()) -> Timed:
    command = (*COPIER, "copy", *QUIETLY, *chosen(modules), template)
    return lambda: timed(*command, fresh(folder), env=GIT_ENVIRONMENT)


def chosen(modules: Sequence[str]) -> list[str]:
    return [f"--data=modules=[{', '.join(modules)}]"]


def service_of(template: Path, service: Path, modules: Sequence[str] = ()) -> Path:
    """Render a service of the version before the newest, and commit it."""
    command = (*COPIER, "copy", *QUIETLY, *chosen(modules), "--vcs-ref", OLDER)
    timed(*command, template, service, env=GIT_ENVIRONMENT)
    git(service, "init", "--quiet")
    commit(service, "Rendered")
    return service


def updating(service: Path, folder: Path) -> Timed:
    return lambda: timed_update(service, folder, GIT_ENVIRONMENT)


def generating(environment: Path, folder: Path) -> Timed:
    offline = {"UV_OFFLINE": "1", "UV_NO_CACHE": "1", "UV_PYTHON_DOWNLOADS": "never"}

    def generate() -> Taken:
        place = fresh(folder)
        place.mkdir()
        command = environment / "bin" / "fastapi_template"
        return timed(command, *PEER_OPTIONS, cwd=place, env={**GIT_ENVIRONMENT, **offline})

    return generate


def comparisons(sides: Iterable[str]) -> list[Comparison]:
    copies = [name for name in sides if name.startswith("copy, ")]
    updates = [name for name in sides if name.startswith("update, ")]
    return [
        *(
            Comparison(
                f"{name}, beside the same paths",
                name,
                f"the same paths, {name}",
                f"<= {PROMISES[name.partition(', ')[0]]:g}",
            )
            for name in [*copies, *updates]
        ),
        *(Comparison(f"{name}, beside one file", name, FLOOR) for name in copies),
        *(Comparison(f"{name}, beside one file", name, FLOOR_UPDATE) for name in updates),
        *(Comparison(f"{name}, beside {PEER}", name, PEER) for name in copies),
        Comparison("a file more, beside one of one line", MORE, MORE_PLAIN),
        *(
            Comparison(f"{times} times the files", name, FLOOR, growth=True)
            for times, name in GROWTH.items()
        ),
    ]
