"""The database: `app db …`."""

import asyncio
import os
from typing import Annotated

import typer

from app.platform.cli.base import load
from app.platform.database import migrations
from app.platform.database.engine import DatabaseSettings
from app.platform.terminal import say

commands = typer.Typer()
group = typer.Typer(help="The database's schema.", no_args_is_help=True)
commands.add_typer(group, name="db")


@group.command()
def upgrade() -> None:
    """Run the pending migrations of every module. `app dev` does so at its start."""
    settings = load(DatabaseSettings)
    url, pooler = settings.database_url.get_secret_value(), settings.database_pooler
    asyncio.run(migrations.upgrade(url, pooler=pooler))
    say("the schema is up to date")


@group.command()
def revision(
    message: Annotated[str, typer.Argument(help="The change, in a few words.")],
    empty: Annotated[
        bool, typer.Option("--empty", help="Without steps, to be written by hand.")
    ] = False,
) -> None:
    """Write the next migration: from the tables of the database to the models."""
    if not message.isprintable() or {*message} & {'"', "\\"}:  # it goes into source code
        raise typer.BadParameter("use one line without double quotes and backslashes")
    settings = load(DatabaseSettings)
    url, pooler = settings.database_url.get_secret_value(), settings.database_pooler
    path = asyncio.run(migrations.create_revision(url, message, empty=empty, pooler=pooler))
    if path is None:
        say("nothing to write: the database matches the models")
    else:
        say(f"wrote {os.path.relpath(path)}; review it, then run `app db upgrade`")
