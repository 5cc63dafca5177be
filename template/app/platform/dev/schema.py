"""The schema of a development database: run the migrations, and notice models without one."""

from app.platform.config import load
from app.platform.database import migrations, revisions
from app.platform.database.engine import DatabaseSettings
from app.platform.database.migrations import UnknownRevision
from app.platform.dev.errors import DevelopmentServerError
from app.platform.dev.servers import say

_MAX_SHOWN = 5


class SchemaTooNew(DevelopmentServerError):
    """The database has migrations that this code does not have."""


async def prepare_schema() -> None:
    """Run the pending migrations, and print the changes of models that have none.

    Raises SchemaTooNew, and the errors of `migrations.upgrade`.
    """
    settings = load(DatabaseSettings)
    url, pooler = settings.database_url.get_secret_value(), settings.database_pooler
    try:
        await migrations.upgrade(url, pooler=pooler)
    except UnknownRevision as error:
        raise SchemaTooNew(_advice(error)) from error
    if changes := await revisions.find_changes(url, pooler=pooler):
        say(f"models without a migration: {_listed(changes)}")
        say('  write it with `uv run app db revision "what changes"`; `app dev` then runs it')


def _advice(error: UnknownRevision) -> str:
    steps = " and ".join(
        f"`uv run app db downgrade {migrations.newest_of_branch(revision)}`"
        for revision in error.revisions
    )
    return (
        f"the database has the migration {', '.join(error.revisions)}, which this code does not"
        f" have; revert it with the code that has it ({steps} while its `app dev` runs), or delete"
        " the data of this folder's own server: `uv run app dev --fresh`"
    )


def _listed(changes: list[str]) -> str:
    more = len(changes) - _MAX_SHOWN
    return ", ".join(changes[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
