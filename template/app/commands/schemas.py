"""The schemas of the published events: `app schemas …`."""

from pathlib import Path
from typing import Annotated

import typer

from app import wiring
from app.events.schemas import IncompatibleChange, check_compatible, export, is_exported

commands = typer.Typer()
group = typer.Typer(help="The JSON Schemas of the published events.", no_args_is_help=True)
commands.add_typer(group, name="schemas")

Folder = Annotated[Path, typer.Argument(help="Where the schemas are kept, under version control.")]
KEPT = Path("tests/unit/events/schemas")


@group.command("export")
def export_schemas(folder: Folder = KEPT) -> None:
    """Write the schema of each event's newest version. Refuses a change that readers could trip
    over and that kept its major version."""
    try:
        written = export(wiring.EVENTS, folder)
    except IncompatibleChange as error:
        raise _failure(str(error)) from error
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(f"{len(written)} schemas written" if written else "all schemas were exported")


@group.command()
def check(folder: Folder = KEPT) -> None:
    """Exit with code 1 when a schema is not exported, or not compatible with those before."""
    try:
        for entry in wiring.EVENTS:
            check_compatible(entry, folder)
            if not is_exported(entry, folder):
                raise _failure(f"{entry.name} {entry.version}: run `app schemas export`")
    except IncompatibleChange as error:
        raise _failure(str(error)) from error
    typer.echo("all schemas are exported and compatible")


def _failure(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)
