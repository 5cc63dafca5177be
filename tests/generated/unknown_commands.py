"""Run inside a rendered service: say which of the commands do not explain themselves.

python unknown_commands.py COMMAND ...
"""

import sys

from typer.testing import CliRunner

from app.cli import cli

for command in sys.argv[1:]:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    if result.exit_code != 0:
        print(f"app {command}: {result.output}")
