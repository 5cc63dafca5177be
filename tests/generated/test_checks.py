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


def test_machinery(base: Service) -> None:
    """Tests of what no service changes are the template's to run, not each service's."""
    folder = str(ROOT / "tests" / "machinery")
    # This repository's fixtures and its package `tests` are not theirs: those of the service are.
    apart = ("--confcutdir", folder, "--import-mode", "importlib", "-p", "tests.conftest")
    settings = ("-c", "pyproject.toml", "--rootdir", ".")
    base.close_with(base.run("python", "-m", "pytest", "-q", *settings, *apart, folder))


def test_types_of_the_machinery_tests(base: Service) -> None:
    base.run("mypy", "--config-file", "pyproject.toml", str(ROOT / "tests" / "machinery"))
