"""The output of `app --help`, whichever modules the service has."""

import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from app import wiring
from app.platform import cli
from app.platform.cli import COMMANDS, command_line, load_command

FOUND = {
    entry.name: import_module(f"{cli.__name__}.{entry.name}")
    for entry in iter_modules(cli.__path__)
}
MODULES = [name for name, module in FOUND.items() if hasattr(module, "commands")]
THERE = [name for name, (module, _) in COMMANDS.items() if module in MODULES]

# Modules that take long to import, and that no help needs. Typer itself imports pydantic.
HEAVY = [
    *("aiokafka", "alembic", "asyncpg", "fastapi", "opentelemetry", "prometheus_client"),
    *("pydantic_settings", "sqlalchemy", "starlette", "structlog", "uvicorn"),
    *("app.platform.config", "app.platform.dev", "app.platform.runtime", "app.wiring"),
]
HELPED = f"""
import sys
from app.__main__ import main
sys.argv = ["app", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sorted(sys.modules.keys() & {HEAVY}))
"""
# Prints which heavy modules each help has imported; the first of those that import one is named.
WALK = f"""
import sys
from contextlib import redirect_stdout
from io import StringIO
from app.platform.cli import COMMANDS, command_line, load_command

named = set()

def ask(path, command):
    with redirect_stdout(StringIO()) as shown:
        command_line(None)([*path, "--help"], standalone_mode=False)
    assert "Usage: " in shown.getvalue(), path
    new = (sys.modules.keys() & {HEAVY}) - named
    named.update(new)
    print(*path, "--help:", *sorted(new))
    for name, inner in getattr(command, "commands", {{}}).items():
        ask([*path, name], inner)

for name in sys.argv[1:]:
    ask([name], load_command(name))
"""


@pytest.mark.parametrize("name", THERE)
def test_the_line_of_a_command_is_what_its_own_help_begins_with(name: str) -> None:
    said = load_command(name).help or ""

    assert COMMANDS[name][1] == " ".join(said.split("\n\n")[0].split())


@pytest.mark.parametrize("module", MODULES)
def test_each_command_of_a_module_is_in_the_table(module: str) -> None:
    own = get_group(FOUND[module].commands).commands

    assert {name for name, (other, _) in COMMANDS.items() if other == module} == own.keys()


def test_help_shows_the_commands_of_the_chosen_modules() -> None:
    shown = CliRunner().invoke(command_line(lambda: wiring.service), ["--help"], terminal_width=200)
    found = [line.split()[1] for line in shown.output.splitlines() if line.startswith("│")]

    assert shown.exit_code == 0
    assert [name for name in found if name in COMMANDS] == THERE


def helped(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`app ARGUMENTS` in a Python of its own, and at the end what it imported of the heavy packages."""
    command = (sys.executable, "-c", HELPED, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_nothing_that_takes_long() -> None:
    done = helped("--help")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


def test_help_of_each_command_imports_nothing_that_takes_long() -> None:
    walk = (sys.executable, "-c", WALK, *THERE)
    done = subprocess.run(walk, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    asked = done.stdout.splitlines()
    assert [line for line in asked if not line.endswith(" --help:")] == []
    assert {"dlq --help:", "dlq replay --help:", "topics check --help:"} <= {*asked}


def test_the_service_loads_without_the_garbage_collector() -> None:
    load = """
import gc
from app.__main__ import load_service
before = [generation["collections"] for generation in gc.get_stats()]
load_service()
after = [generation["collections"] for generation in gc.get_stats()]
assert after == before, (before, after)
assert gc.isenabled() and gc.get_freeze_count() > 10_000  # it works from now on, on what is new
"""
    done = subprocess.run((sys.executable, "-c", load), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_service_loads_without_http() -> None:
    """Its routers are imported when HTTP is served."""
    load = """
import sys
from app.wiring import service
assert service.events and service.subscriptions
assert sys.modules.keys().isdisjoint({"fastapi", "starlette", "uvicorn"}), "HTTP without need"
assert service.routers and "fastapi" in sys.modules
"""
    done = subprocess.run((sys.executable, "-c", load), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_process_starts_without_alembic_and_rich() -> None:
    """Neither is needed where nothing is pending and nothing is printed for people."""
    load = """
import gc, sys
from app.__main__ import main
sys.argv = ["app", "asyncapi"]
try:
    main()
except SystemExit as end:
    assert not end.code, end
from app.platform.http import server
from app.wiring import service
assert service.routers and gc.get_threshold()[0] >= 10_000
loaded = sys.modules.keys() & {"alembic", "mako", "rich", "pygments"}
assert not loaded, loaded
import rich.console
"""
    done = subprocess.run((sys.executable, "-c", load), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_command_that_is_not_there_is_refused() -> None:
    result = CliRunner().invoke(command_line(lambda: wiring.service), ["nosuch"])

    assert result.exit_code == 2
    assert "No such command 'nosuch'" in result.output
