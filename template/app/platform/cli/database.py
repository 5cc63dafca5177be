"""The database: `app db …`."""

import asyncio
import os
from typing import Annotated

import typer

from app.platform.cli.base import load
from app.platform.terminal import say

commands = typer.Typer()
group = typer.Typer(help="The database's schema.", no_args_is_help=True)
commands.add_typer(group, name="db")


@group.command()
def upgrade() -> None:
    """Run the pending migrations of every module. `app dev` does so at its start."""
    from app.platform.database import migrations

    url, pooler = _database()
    asyncio.run(migrations.upgrade(url, pooler=pooler))
    say("the schema is up to date")


@group.command()
def downgrade(
    target: Annotated[
        str, typer.Argument(help="The revision to return to, or how many to revert: core@-1.")
    ],
) -> None:
    """Revert the migrations after a revision, on its branch. Their tables and columns are dropped."""
    from app.platform.database import migrations

    url, pooler = _database()
    asyncio.run(migrations.downgrade(url, target, pooler=pooler))
    say(f"the schema is back at {target}")


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
    from app.platform.database import revisions

    url, pooler = _database()
    path = asyncio.run(revisions.create_revision(url, message, empty=empty, pooler=pooler))
    if path is None:
        say("nothing to write: the database matches the models")
    else:
        say(f"wrote {os.path.relpath(path)}; review it, then run `app db upgrade`")


def _database() -> tuple[str, bool]:
    """Return the database's URL, and whether a pooler is before it."""
    from app.platform.database.engine import DatabaseSettings

    settings = load(DatabaseSettings)
    return settings.database_url.get_secret_value(), settings.database_pooler
