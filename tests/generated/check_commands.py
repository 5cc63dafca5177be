"""Run inside a rendered service: print the command lines that the service would not take.

python check_commands.py "app topics list" ...

Nothing is run. An argument that is missing is no error: texts name commands without theirs.
"""

import shlex
import sys

from typer.main import get_command

from app.__main__ import load_service
from app.platform.cli import command_line

cli = command_line(load_service)


def parse(line: str) -> None:
    name, *arguments = shlex.split(line)
    command, context = get_command(cli), None
    while hasattr(command, "resolve_command"):
        if not arguments:
            return  # a group of commands, which would print its help
        context = command.make_context(name, arguments, parent=context)
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
    command.make_context(name, arguments, parent=context)


for line in sys.argv[1:]:
    try:
        parse(line)
    except Exception as error:  # Typer has its own copy of Click, whose errors it does not export
        if type(error).__name__ != "MissingParameter":
            print(f"{line}: {error}")
