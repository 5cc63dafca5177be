"""The rendered service's own checks, run as its README says."""

from pathlib import Path

from tests.generated.conftest import Service
from tests.rendering import ROOT


def test_lint(service: Service) -> None:
    service.run("ruff", "check", ".")


def test_format(service: Service) -> None:
    service.run("ruff", "format", "--check", ".")


def test_types(service: Service, mypy_cache: Path) -> None:
    service.run("mypy", "--cache-dir", str(mypy_cache))


def test_direction_of_imports(service: Service) -> None:
    service.run("lint-imports")


def test_own_tests(service: Service) -> None:
    service.close_with(service.run("pytest", "-q"))


def test_launcher_of_the_embedded_servers(base: Service) -> None:
    """Its tests start and kill servers: they are the template's to run, not each service's."""
    folder = str(ROOT / "tests" / "launcher")
    # Neither this repository's fixtures nor its package `tests` are theirs.
    apart = ("--confcutdir", folder, "--import-mode", "importlib", "-p", "tests.fixtures.servers")
    settings = ("-c", "pyproject.toml", "--rootdir", ".")
    base.close_with(base.run("python", "-m", "pytest", "-q", *settings, *apart, folder))
