"""The template's part of the service: `app platform`."""

from pathlib import Path
from typing import Annotated

import typer

from app.platform.cli.base import counted, failure, require_development
from app.platform.terminal import say

commands = typer.Typer()

Check = Annotated[bool, typer.Option("--check", help="Exit with code 1 if there are any.")]


@commands.command()
def platform(check: Check = False) -> None:
    """List the files of app/platform that this service has changed."""
    require_development("app platform")
    from app.platform.dev.changes import TemplateUnavailable, find_changes

    try:
        found = find_changes(Path.cwd())
    except TemplateUnavailable as error:
        raise failure(str(error)) from error
    for path, change in found.items():
        say(f"{change.value:<8} {path.as_posix()}")
    say(f"{counted(len(found), 'file')} of app/platform changed here")
    if found and check:
        raise typer.Exit(1)
