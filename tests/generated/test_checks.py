"""The rendered service's own checks, run as its README says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests import matrix, rendering
from tests.generated.conftest import Service, chosen_variants
from tests.generated.workspace import Workspace
from tests.matrix import Variant
from tests.rendering import ROOT

CHECK_MIGRATIONS = Path(__file__).with_name("check_migrations.py")
CHECK_REVISIONS = Path(__file__).with_name("check_revisions.py")

of_full = pytest.mark.xdist_group(matrix.ends()[-1].code)


def test_lint(service: Service) -> None:
    service.run("ruff", "check", ".")


def test_format(service: Service) -> None:
    service.run("ruff", "format", "--check", ".")


def test_types(service: Service, workspace: Workspace, mypy_cache: Path) -> None:
    check_types(service, workspace, mypy_cache)


def test_direction_of_imports(service: Service) -> None:
    service.run("lint-imports")


def test_migrations_create_every_table(service: Service, servers: Mapping[str, str]) -> None:
    settings = {**servers, "PYTHONPATH": str(service.path)}
    output = service.run("python", str(CHECK_MIGRATIONS), settings=settings)
    assert "No new upgrade operations detected" in output


@pytest.mark.corners
def test_new_tables_and_columns_become_migrations_of_branch_core(
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
    """Run them on the servers of the run; the smallest variant starts its own, as for its users."""
    smallest, largest = matrix.ends()
    servers = {} if variant == smallest else request.getfixturevalue("servers")
    where = "its own servers" if variant == smallest else "shared servers"
    covered = ", ".join(matrix.covered_by(variant))
    left_out: list[str] = []
    reference = largest if "outbox" in variant.modules else smallest
    if variant not in (smallest, largest) and reference in chosen_variants(request.config):
        left_out = run_elsewhere(variant, service.path, workspace.render(reference, repository))
        where += f", without {len(left_out)} files that {reference.code} runs"
    output = service.run(
        "pytest", "-q", *(f"--ignore={path}" for path in left_out), settings=servers
    )
    service.report_last_line(output, f"{where}; covers {covered}")


# A test with these names uses the service as it is wired.
WIRED = re.compile(r"\b(?:wiring|serving|live_app|run_cli)\b|: (?:AsyncClient|Api|FastAPI)\b")


def run_elsewhere(variant: Variant, service: Path, reference: Path) -> list[str]:
    """List the tests of the platform that `reference` runs as well, on the same platform.

    Tests that use the wired service are listed for a lean service with some of the modules only: the
    others run them.
    """
    everything = not variant.sample_domain and variant not in matrix.corners()
    found = [
        str(path)
        for path in rendering.files(service)
        if str(path).startswith("tests/platform/")
        and path.name.startswith("test_")
        and identical(service / path, reference / path)
        and (everything or not WIRED.search((service / path).read_text()))
    ]
    assert found
    return found


def identical(file: Path, other: Path) -> bool:
    return other.exists() and file.read_bytes() == other.read_bytes()


PLATFORM_TESTS = ROOT / "tests" / "platform"
BENCHMARKS = ROOT / "benchmarks"
JSONSUBSCHEMA = "jsonsubschema>=0.0.8,<0.1"
SAMPLES = {"PYTHONPATH": str(PLATFORM_TESTS), "MYPYPATH": str(PLATFORM_TESTS)}


def run_platform_tests(service: Service, tests: Sequence[str], beside: Sequence[str] = ()) -> None:
    """Run unit tests of the platform inside `service`, by the command `beside` it if there is one."""
    # They use the fixtures and the package `tests` of the service, not of this repository.
    isolation = ("--confcutdir", str(PLATFORM_TESTS), "--import-mode", "importlib")
    plugins = ("-p", "tests.conftest")
    settings = ("-c", "pyproject.toml", "--rootdir", ".")
    output = service.run(
        *(*beside, "python", "-m", "pytest", "-q", *settings, *isolation, *plugins, *tests),
        settings=SAMPLES,
    )
    service.report_last_line(output, "tests/platform")


def modules_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("test_*.py"))]


@pytest.fixture(scope="module")
def apart(base: Service, workspace: Workspace, repository: Path) -> Service:
    """Render the base once more, for tests that run beside those of the base."""
    path = workspace.render(matrix.codes()[0], repository, "apart")
    settings = workspace.sync_environment(path)
    workspace.install(path, "platform")
    return replace(base, path=path, settings=settings)


@pytest.mark.xdist_group("platform")
def test_platform(apart: Service) -> None:
    run_platform_tests(apart, modules_in(PLATFORM_TESTS))


@pytest.mark.xdist_group("platform")
def test_verdicts_on_schemas_beside_those_of_a_library(apart: Service) -> None:
    """Compare them with jsonsubschema, which no service needs."""
    beside = ("uv", "run", "--quiet", "--no-sync", "--with", JSONSUBSCHEMA)
    # It has escape sequences that Python warns of.
    options = ("-W", "ignore::SyntaxWarning", "-W", "ignore::DeprecationWarning")
    run_platform_tests(apart, [*options, str(PLATFORM_TESTS / "peers")], beside)


@pytest.mark.xdist_group("platform")
def test_types_of_the_platform_tests(
    apart: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    tests = [*modules_in(PLATFORM_TESTS), *modules_in(PLATFORM_TESTS / "every")]
    check_types(apart, workspace, mypy_cache, tests)


def test_platform_with_the_modules(
    variant: Variant, service: Service, workspace: Workspace, mypy_cache: Path
) -> None:
    """Run those for every combination, and those of a module where it is the only one."""
    own = modules_in(PLATFORM_TESTS / variant.code)
    run_platform_tests(service, [*modules_in(PLATFORM_TESTS / "every"), *own])
    if own:
        check_types(service, workspace, mypy_cache, own)


# The packages that the benchmarks compare with are not installed.
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
def test_types_of_the_benchmarks(full: Service, workspace: Workspace, mypy_cache: Path) -> None:
    inside = ("from app", "from harness", "from fastapi")  # these need a service's environment
    found = {path: path.read_text() for path in BENCHMARKS.glob("*.py")}
    files = [path for path, text in found.items() if any(each in text for each in inside)]
    assert files
    ignored = [f"--disable-error-code={code}" for code in IGNORED_ERRORS]
    options = ("--ignore-missing-imports", "--follow-imports", "silent", *ignored)
    beside = {"MYPYPATH": str(BENCHMARKS)}  # they import each other as scripts
    check_types(full, workspace, mypy_cache, [*options, *map(str, files)], beside)


def check_types(
    service: Service,
    workspace: Workspace,
    cache: Path,
    paths: Sequence[str] = (),
    settings: Mapping[str, str] = SAMPLES,
) -> None:
    with workspace.locked("mypy"):  # two that write one cache would not find each other's work
        options = ("--config-file", "pyproject.toml", "--cache-dir", str(cache))
        service.run("mypy", *options, *paths, settings=settings)
