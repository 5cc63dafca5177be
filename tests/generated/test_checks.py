"""The rendered service's own checks, run as its README says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import matrix, rendering
from tests.generated.conftest import Service
from tests.generated.workspace import Workspace
from tests.matrix import Variant
from tests.rendering import ROOT

CHECK_MIGRATIONS = Path(__file__).with_name("check_migrations.py")
CHECK_REVISIONS = Path(__file__).with_name("check_revisions.py")
ON_SERVERS = {"tests/platform", "tests/platform/outbox"}

# Others look for processes that are left in the folder of this service.
of_base = pytest.mark.xdist_group(matrix.codes()[0].code)
of_full = pytest.mark.xdist_group(matrix.ends()[-1].code)


def test_lint(service: Service) -> None:
    service.run("ruff", "check", ".")


def test_format(service: Service) -> None:
    service.run("ruff", "format", "--check", ".")


def test_types(service: Service, workspace: Workspace, mypy_cache: Path) -> None:
    check_types(service, workspace, mypy_cache)


def test_direction_of_imports(service: Service) -> None:
    service.run("lint-imports")


def test_migrations_make_every_table_and_nothing_is_left_to_do(
    service: Service, servers: Mapping[str, str]
) -> None:
    settings = {**servers, "PYTHONPATH": str(service.path)}
    output = service.run("python", str(CHECK_MIGRATIONS), settings=settings)
    assert "No new upgrade operations detected" in output


def test_a_table_or_a_column_becomes_a_migration_of_the_services_own_branch(
    service: Service, servers: Mapping[str, str]
) -> None:
    settings = {**servers, "PYTHONPATH": str(service.path)}
    output = service.run("python", str(CHECK_REVISIONS), settings=settings)
    assert "before: None\n" in output
    assert "new module: core_0002_add_reviews.py\n" in output
    assert "written: core_0002_add_nicknames.py\n" in output
    assert "again: migrations are pending; run `app db upgrade` first\n" in output
    assert output.count("after: None\n") == 2, "a living database and a fresh one are the same"
    assert "empty: core_0003_by_hand.py\n" in output


def test_own_tests(
    variant: Variant,
    service: Service,
    workspace: Workspace,
    repository: Path,
    request: pytest.FixtureRequest,
) -> None:
    """On the servers of the run; the smallest starts its own, as it does for whoever renders it."""
    smallest = variant == matrix.codes()[0]
    servers = {} if smallest else request.getfixturevalue("servers")
    where = "its own servers" if smallest else "shared servers"
    covered = ", ".join(matrix.covered_by(variant))
    left_out: list[str] = []
    if variant.modules and not variant.sample_domain:
        full = Variant(variant.modules)
        left_out = covered_elsewhere(service.path, workspace.render(full, repository))
        where += f", without {len(left_out)} files that {full.code} runs"
    output = service.run(
        "pytest", "-q", *(f"--ignore={path}" for path in left_out), settings=servers
    )
    service.report_last_line(output, f"{where}; covers {covered}")


def covered_elsewhere(service: Path, full: Path) -> list[str]:
    """The tests of the machinery on servers that `whole` has as well, of the same machinery."""
    found = [
        str(path)
        for path in rendering.files(service)
        if str(path.parent) in ON_SERVERS
        and path.name.startswith("test_")
        and identical(service / path, full / path)
    ]
    assert found
    return found


def identical(file: Path, other: Path) -> bool:
    return other.exists() and file.read_bytes() == other.read_bytes()


MACHINERY = ROOT / "tests" / "platform"
BENCHMARKS = ROOT / "benchmarks"
SAMPLES = {"PYTHONPATH": str(MACHINERY), "MYPYPATH": str(MACHINERY)}


def run_machinery(service: Service, tests: Sequence[str]) -> None:
    """Tests of what no service changes are the template's to run, not each service's."""
    # This repository's fixtures and its package `tests` are not theirs: those of the service are.
    apart = ("--confcutdir", str(MACHINERY), "--import-mode", "importlib", "-p", "tests.conftest")
    settings = ("-c", "pyproject.toml", "--rootdir", ".")
    output = service.run(
        "python", "-m", "pytest", "-q", *settings, *apart, *tests, settings=SAMPLES
    )
    service.report_last_line(output, "tests/platform")


def modules_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("test_*.py"))]


@of_base
def test_machinery(base: Service) -> None:
    run_machinery(base, modules_in(MACHINERY))


@of_base
def test_types_of_the_machinery_tests(
    base: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    tests = [*modules_in(MACHINERY), *modules_in(MACHINERY / "every")]
    check_types(base, workspace, mypy_cache, tests)


def test_machinery_of_the_modules(
    variant: Variant, service: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    """Everywhere what any module changes, and in the service with one module alone what is its own."""
    own = modules_in(MACHINERY / variant.code)
    run_machinery(service, [*modules_in(MACHINERY / "every"), *own])
    if own:
        check_types(service, workspace, mypy_cache, own)


# What is left open where the packages that the benchmarks compare with are not installed.
IGNORED_ERRORS = [
    "arg-type",
    "assignment",
    "call-overload",
    "misc",
    "no-any-return",
    "operator",
    "type-arg",
    "untyped-decorator",
    "unused-ignore",
]


@of_full
def test_what_the_benchmarks_call_is_there(
    full: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    files = [path for path in BENCHMARKS.glob("*.py") if "from app" in path.read_text()]
    assert files
    ignored = [f"--disable-error-code={code}" for code in IGNORED_ERRORS]
    options = ("--ignore-missing-imports", "--follow-imports", "silent", *ignored)
    check_types(full, workspace, mypy_cache, [*options, *map(str, files)])


def check_types(
    service: Service, workspace: Workspace, cache: Path, paths: Sequence[str] = ()
) -> None:
    with workspace.locked("mypy"):  # two that write one cache would not find each other's work
        options = ("--config-file", "pyproject.toml", "--cache-dir", str(cache))
        service.run("mypy", *options, *paths, settings=SAMPLES)
