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

# What takes long to import, and is needed by no help.
HEAVY = {"aiokafka", "fastapi", "pydantic", "sqlalchemy", "uvicorn"}
HELPED = f"""
import sys
from app.__main__ import main
sys.argv = ["app", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sorted(sys.modules.keys() & {HEAVY}))
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


def test_the_help_of_a_command_imports_what_the_command_needs() -> None:
    assert helped("topics", "--help").stdout.splitlines()[-1] != "imported:"


def test_a_command_that_is_not_there_is_refused() -> None:
    result = CliRunner().invoke(command_line(lambda: wiring.service), ["nosuch"])

    assert result.exit_code == 2
    assert "No such command 'nosuch'" in result.output
