"""The doctor: `app doctor`."""

import typer

from app.platform.cli.base import counted, service_of
from app.platform.terminal import say

commands = typer.Typer()


@commands.command()
def doctor(ctx: typer.Context) -> None:
    """Check settings, servers, topics, migrations and template, and print what to do.

    The exit code is 1 if there is an error, and 0 if there are only warnings.
    """
    from app.platform.cli.checks import Level, examine

    levels = []
    for finding in examine(service_of(ctx)):
        say(f"{finding.level.value:<8} {finding.subject:<10} {finding.text}")
        levels.append(finding.level)
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    say(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}")
    if errors:
        raise typer.Exit(1)
