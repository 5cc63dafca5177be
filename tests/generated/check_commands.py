"""Run inside a rendered service: say which of the commands do not explain themselves.

python check_commands.py COMMAND ...
"""

import sys

from typer.testing import CliRunner

from app.__main__ import load_service
from app.platform.cli import command_line

cli = command_line(load_service)
for command in sys.argv[1:]:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    if result.exit_code != 0:
        print(f"app {command}: {result.output}")
