"""`app db revision`: the next migration of the service, from what its tables have become."""

import re
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from app.config import ConfigurationError
from app.database import open_engine
from app.migrate import migrations_folder

# The service's own branch. A module's migrations are a branch of the template's.
BRANCH = "core"


class NoRevision(ConfigurationError):
    """The migration cannot be written."""


async def write(database_url: str, message: str, *, empty: bool = False) -> Path | None:
    """Write what leads from the tables of the database to those of the code; none if that is nothing.

    The database has to be at the newest migrations. With `empty`, the steps are left to be written.
    Raises NoRevision.
    """
    folder = migrations_folder()
    project = folder.parent / "pyproject.toml"
    if not project.is_file():
        raise NoRevision(f"{folder} is not in a project's folder: migrations are written there")
    # The settings of pyproject.toml have the hooks that format what is written.
    config = Config(toml_file=project, cmd_opts=Namespace(quiet=True), attributes={})
    engine = open_engine(database_url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_write, config, message, empty)
    except CommandError as error:
        raise NoRevision(str(error)) from error
    finally:
        await engine.dispose()


def _write(connection: Connection, config: Config, message: str, empty: bool) -> Path | None:
    folder = ScriptDirectory.from_config(config)
    run = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    if {*run} != {*folder.get_heads()}:
        raise NoRevision("the database is not at the newest migrations: `app db upgrade` first")
    config.attributes["connection"] = connection
    written = command.revision(
        config,
        message,
        autogenerate=True,
        head=f"{BRANCH}@head",
        rev_id=_next(script.revision for script in folder.walk_revisions()),
        process_revision_directives=_without_steps if empty else _unless_nothing_changed,
    )
    return Path(written.path) if written and not isinstance(written, list) else None


def _next(revisions: Iterable[str]) -> str:
    numbers = [int(found[1]) for name in revisions if (found := re.match(rf"{BRANCH}_(\d+)", name))]
    return f"{BRANCH}_{max(numbers, default=0) + 1:04}"


def _unless_nothing_changed(
    _context: MigrationContext, _revision: Any, scripts: list[MigrationScript]
) -> None:
    if all(script.upgrade_ops is None or script.upgrade_ops.is_empty() for script in scripts):
        scripts.clear()


def _without_steps(
    _context: MigrationContext, _revision: Any, scripts: list[MigrationScript]
) -> None:
    for script in scripts:
        for steps in (script.upgrade_ops, script.downgrade_ops):
            if steps is not None:
                steps.ops.clear()
