"""The database: `app db …`."""

import asyncio

import typer

from app import migrate
from app.commands import load
from app.database import DatabaseSettings

commands = typer.Typer()
group = typer.Typer(help="The database's schema.", no_args_is_help=True)
commands.add_typer(group, name="db")


@group.command()
def upgrade() -> None:
    """Bring the schema up to date: every module's migrations, to their newest.

    `app dev` does so when it starts.
    """
    settings = load(DatabaseSettings)
    asyncio.run(migrate.upgrade(settings.database_url.get_secret_value()))
    typer.echo("the schema is up to date")
