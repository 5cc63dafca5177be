import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import rendering
from tests.rendering import ROOT, Variant
from tests.shell import environment

CLOSING = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CLOSING] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash[CLOSING]:
        terminalreporter.write_line(line)


@dataclass(frozen=True)
class Service:
    """A rendered service with its environment, as `uv sync` made it."""

    path: Path
    name: str
    closing: list[str] = field(repr=False)

    def run(self, *command: str, timeout: float = 600) -> str:
        """`uv run` a command there, and fail with all it said unless it succeeds."""
        result = subprocess.run(
            ("uv", "run", "--no-sync", *command),
            cwd=self.path,
            # Folders of its own, which no other run of pytest takes back (see services_folder).
            env=environment() | {"PYTEST_DEBUG_TEMPROOT": str(self.path.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
        return result.stdout

    def close_with(self, output: str) -> None:
        """Show the last line of `output` in the summary of this run."""
        last = output.rstrip().splitlines()[-1].strip("= ")
        self.closing.append(f"{self.name}: {last}")


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """Where services are rendered.

    Not below pytest's own folder: root's PostgreSQL runs as somebody else, who would be locked out
    each time another pytest starts and takes that folder's permissions back.
    """
    with TemporaryDirectory(prefix="services-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def services(
    repository: Path, services_folder: Path, pytestconfig: pytest.Config
) -> Callable[[Variant], Service]:
    """Renders a variant and installs its environment, each once a session."""
    python = str(pytestconfig.getoption("--service-python"))
    done: dict[str, Service] = {}

    def install(variant: Variant) -> Service:
        if variant.name not in done:
            path = services_folder / variant.name / "my-service"
            rendering.render(repository, path, variant.answers)
            sync = ("uv", "sync", "--quiet", "--no-python-downloads", "--python", python)
            subprocess.run(sync, cwd=path, env=environment(), check=True)
            name = f"{variant.name} on Python {version(path)}"
            done[variant.name] = Service(path, name, pytestconfig.stash[CLOSING])
        return done[variant.name]

    return install


def version(service: Path) -> str:
    configuration = (service / ".venv" / "pyvenv.cfg").read_text()
    found = re.search(r"^version_info = (\d+\.\d+)", configuration, re.MULTILINE)
    return found.group(1) if found else "?"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "service" in metafunc.fixturenames:
        variants = list(rendering.module_variants())
        if metafunc.config.getoption("--variants") == "ends":
            variants = variants[:1] + variants[1:][-1:]
        metafunc.parametrize(
            "service", variants, ids=lambda variant: variant.name, indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, services: Callable[[Variant], Service]) -> Service:
    """Every combination of the modules on offer, or the least and the most of them."""
    return services(request.param)


@pytest.fixture(scope="session")
def base(services: Callable[[Variant], Service]) -> Service:
    """The service without modules, for what is the same with them."""
    return services(next(rendering.module_variants()))


@pytest.fixture(scope="session")
def mypy_cache() -> Path:
    # The variants share most of their files, and all of their libraries.
    return ROOT / ".mypy_cache" / "service"
