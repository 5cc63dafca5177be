import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests import matrix, shell
from tests.generated.workspace import Workspace, temporary_folder
from tests.matrix import Variant
from tests.rendering import ROOT

RUN_FOLDER = pytest.StashKey[Path]()
EXIT_STACK = pytest.StashKey[ExitStack]()
WORKER_INPUT = "services_folder"
# Fixtures for a single variant.
SINGLE_VARIANTS = {"base": matrix.codes()[0], "full": matrix.ends()[-1]}
SECONDS = 600


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of the run; workers of xdist get its path from the controller."""
    config.stash[EXIT_STACK] = ExitStack()
    config.addinivalue_line("markers", "corners: of all variants, only the corners run it")
    chosen_variants(config)  # before anything is made for a variant that there is not
    if (given := getattr(config, "workerinput", None)) is None:
        config.stash[RUN_FOLDER] = config.stash[EXIT_STACK].enter_context(temporary_folder())
    else:
        config.stash[RUN_FOLDER] = Path(given[WORKER_INPUT])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # a WorkerController of xdist, which has no types
    node.workerinput[WORKER_INPUT] = str(node.config.stash[RUN_FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[EXIT_STACK].close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    summary = terminalreporter.config.stash[RUN_FOLDER] / "summary"
    for line in summary.read_text().splitlines() if summary.exists() else []:
        terminalreporter.write_line(line)


@dataclass(frozen=True)
class Service:
    """A rendered service with an environment."""

    path: Path
    name: str
    settings: Mapping[str, str] = field(repr=False)
    summary: Path = field(repr=False)

    def run(self, *command: str, settings: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run a command by `uv run`; fail with its output unless it succeeds."""
        whole = {
            **shell.environment(),
            # pytest's own folder is unsuitable (see workspace.temporary_folder).
            "PYTEST_DEBUG_TEMPROOT": str(self.path.parent),
            **self.settings,
            **settings,
        }
        return shell.run(("uv", "run", "--no-sync", *command), self.path, whole, SECONDS)

    def report_last_line(self, output: str, remark: str = "") -> None:
        """Show the last line of `output` in the summary of this run."""
        last = output.rstrip().splitlines()[-1].strip("= ")
        self.report(f"{last} ({remark})" if remark else last)

    def report(self, what: str) -> None:
        with self.summary.open("a") as summary:
            summary.write(f"{self.name}: {what}\n")


@pytest.fixture(scope="session")
def services_folder(pytestconfig: pytest.Config) -> Path:
    """The folder in which services are rendered."""
    return pytestconfig.stash[RUN_FOLDER]


@pytest.fixture(scope="session")
def workspace(services_folder: Path, pytestconfig: pytest.Config) -> Workspace:
    return Workspace(services_folder, str(pytestconfig.getoption("--service-python")))


@pytest.fixture(scope="session")
def services(
    repository: Path, workspace: Workspace, services_folder: Path
) -> Callable[[Variant], Service]:
    """Render a variant and make its environment, each once a run.

    The smallest is set up as its README says; the others share one environment.
    """

    def install(variant: Variant) -> Service:
        path = workspace.render(variant, repository)
        smallest = variant == matrix.codes()[0]
        settings = (
            workspace.sync_environment(path) if smallest else workspace.shared_environment(path)
        )
        name = f"{variant.code} on Python {python_version(path, settings)}"
        return Service(path, name, settings, services_folder / "summary")

    return install


def python_version(service: Path, settings: Mapping[str, str]) -> str:
    folder = Path(settings.get("UV_PROJECT_ENVIRONMENT", service / ".venv"))
    configuration = (folder / "pyvenv.cfg").read_text()
    found = re.search(r"^version_info = (\d+\.\d+)", configuration, re.MULTILINE)
    return found.group(1) if found else "?"


def chosen_variants(config: pytest.Config) -> list[Variant]:
    """List the codes that --variant names."""
    match str(config.getoption("--variant")):
        case "all":
            return matrix.codes()
        case "ends":
            return matrix.ends()
        case name:
            try:
                return matrix.named(name)
            except ValueError as error:
                raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Group the tests of a variant for one worker, so that no two use its folder at once.

    The largest come first, so that the workers end at about the same time.
    """
    if "variant" in metafunc.fixturenames:
        variants = [
            pytest.param(variant, id=variant.code, marks=pytest.mark.xdist_group(variant.code))
            for variant in reversed(chosen_variants(metafunc.config))
        ]
        metafunc.parametrize("variant", variants, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of a variant that is not chosen, and tests that only the corners run."""
    missing = {
        name for name, variant in SINGLE_VARIANTS.items() if variant not in chosen_variants(config)
    }
    others = [item for item in items if not missing.isdisjoint(getattr(item, "fixturenames", ()))]
    if "base" in missing:  # of no variant, so that the run of all of them makes them
        of_some = {"variant", *SINGLE_VARIANTS}
        others += [i for i in items if of_some.isdisjoint(getattr(i, "fixturenames", ()))]
    if config.getoption("--variant") == "all":
        others += [
            item
            for item in items
            if item.get_closest_marker("corners") and variant_of(item) not in matrix.corners()
        ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def variant_of(item: pytest.Item) -> Variant:
    assert isinstance(item, pytest.Function)
    variant = item.callspec.params["variant"]
    assert isinstance(variant, Variant)
    return variant


@pytest.fixture(scope="session")
def service(variant: Variant, services: Callable[[Variant], Service]) -> Service:
    """Each code, or the chosen one."""
    return services(variant)


@pytest.fixture(scope="session")
def base(services: Callable[[Variant], Service]) -> Service:
    """The service without modules, for what is the same with them."""
    return services(SINGLE_VARIANTS["base"])


@pytest.fixture(scope="session")
def full(services: Callable[[Variant], Service]) -> Service:
    """The service with every module, for what needs them all."""
    return services(SINGLE_VARIANTS["full"])


@pytest.fixture(scope="session")
def servers(workspace: Workspace, repository: Path) -> Mapping[str, str]:
    """Addresses of the PostgreSQL and the Kafka that all variants share."""
    return workspace.servers(repository)


@pytest.fixture(scope="session")
def mypy_cache() -> Path:
    # The variants share most of their files, and all of their libraries.
    return ROOT / ".mypy_cache" / "service"
