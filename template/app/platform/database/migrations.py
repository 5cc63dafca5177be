"""Migrations: run them (`app db upgrade`, tests), check that they have run, and write the next one
from the changes of the models (`app db revision`).
"""

import asyncio
import re
from argparse import Namespace
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.operations.ops import DropTableOp, MigrationScript, UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

import app
from app.platform.config import ConfigurationError
from app.platform.database.engine import DISABLE_TIMEOUTS, Probe, open_engine

# The service's own branch. A module's migrations are a branch of the template's.
BRANCH = "core"

# An arbitrary number that no other advisory lock uses.
_LOCK_KEY = 0x5C4E3A
_POLL_SECONDS = 0.2


class UnknownRevision(ConfigurationError):
    """The database has a migration whose file is missing."""


class MigrationsPending(Exception):
    """Migrations have not run yet. `app db upgrade` runs them."""

    def __init__(self, revisions: Sequence[str]) -> None:
        are = "is" if len(revisions) == 1 else "are"
        noun = "migration" if len(revisions) == 1 else "migrations"
        super().__init__(f"{noun} {', '.join(revisions)} {are} missing; run `app db upgrade`")


class RevisionError(ConfigurationError):
    """The migration cannot be written."""


class MigrationsNotFound(Exception):
    """The folder `migrations` is neither in the package nor beside it."""


async def upgrade(database_url: str, *, pooler: bool = False) -> None:
    """Run the pending migrations of every module (`alembic upgrade heads`).

    Simultaneous upgrades run one after the other. `pooler` is as in DatabaseSettings.

    Raises UnknownRevision, MigrationsNotFound, the errors of a migration that fails, and the
    driver's errors.
    """
    config = alembic_config()
    engine = open_engine(database_url, pooler=pooler, poolclass=NullPool)
    try:
        async with _migration_lock(engine), engine.connect() as connection:
            await connection.run_sync(_upgrade, config)
    finally:
        await engine.dispose()


class SchemaCheck:
    """A readiness check: the migrations of the service have run."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._scripts: ScriptDirectory | None = None
        self._complete = False

    async def check(self) -> None:
        """Raise MigrationsPending, MigrationsNotFound, or the driver's errors.

        After a success the database is not asked again.
        """
        if self._complete:
            return
        if self._scripts is None:  # reads files, so not in the event loop's thread
            self._scripts = await asyncio.to_thread(_load_scripts)
        if pending := _pending(self._scripts, await self._revisions()):
            raise MigrationsPending(pending)
        self._complete = True

    async def _revisions(self) -> tuple[str, ...]:
        # Alembic would run more queries.
        ((table,),) = await self._probe.fetch("SELECT to_regclass('alembic_version')::text")
        if table is None:
            return ()
        rows = await self._probe.fetch("SELECT version_num FROM alembic_version")
        return tuple(row[0] for row in rows)


def _load_scripts() -> ScriptDirectory:
    scripts = ScriptDirectory.from_config(alembic_config())
    scripts.get_heads()  # reads the files now, not at the first use
    return scripts


def _pending(scripts: ScriptDirectory, run: tuple[str, ...]) -> list[str]:
    """Return the pending migrations, oldest first, of a database with the revisions `run`.

    A revision without a file belongs to a newer service: then nothing is pending, so that the old
    version stays ready while the new one is rolled out.
    """
    there = {script.revision for script in scripts.walk_revisions()}
    if not there.issuperset(run):
        return []
    pending = scripts.iterate_revisions("heads", run, implicit_base=True)
    return [script.revision for script in pending][::-1]


def alembic_config() -> Config:
    """Return Alembic's configuration, wherever the service is installed."""
    folder = migrations_folder()
    config = Config(attributes={})
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def migrations_folder() -> Path:
    """Return `migrations` in the package (a wheel), or beside it (a checkout, an image)."""
    package = Path(app.__file__).parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise MigrationsNotFound(
        f"no migrations in {package} or {package.parent}: copy the project's folder"
        " `migrations` beside the package `app`"
    )


def _upgrade(connection: Connection, config: Config) -> None:
    there = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    run = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()  # Alembic does not commit a transaction that it has not begun
    if missing := sorted({*run} - there):
        raise UnknownRevision(
            f"the database has the migration {', '.join(missing)}, which is not in"
            f" {migrations_folder()}. Does it belong to a newer version of the service? Deploy that."
            " To a module that was switched off? Bring its file back from git."
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "heads")


@asynccontextmanager
async def _migration_lock(engine: AsyncEngine) -> AsyncIterator[None]:
    """Hold the lock of migrations during the block, on a separate connection.

    The lock is polled: a statement that waits for it would hold a snapshot, and a migration with
    CREATE INDEX CONCURRENTLY would wait for that snapshot for ever. It belongs to a transaction,
    which is idle while the migrations run, because a transaction pooler would keep a session's lock.
    """
    async with engine.connect() as connection:
        while True:
            async with connection.begin():
                await connection.execute(DISABLE_TIMEOUTS)
                if await connection.scalar(
                    text("SELECT pg_try_advisory_xact_lock(:k)"), {"k": _LOCK_KEY}
                ):
                    yield
                    return
            await asyncio.sleep(_POLL_SECONDS)


async def create_revision(
    database_url: str, message: str, *, empty: bool = False, pooler: bool = False
) -> Path | None:
    """Write a migration from the tables of the database to the models; return None without changes.

    The database has to be at the newest migrations. With `empty`, the migration has no steps.
    Raises RevisionError.
    """
    folder = migrations_folder()
    project = folder.parent / "pyproject.toml"
    if not project.is_file():
        raise RevisionError(f"{folder} is not in a project's folder; run `app db revision` in one")
    # The settings in pyproject.toml contain the hooks that format the file.
    config = Config(toml_file=project, cmd_opts=Namespace(quiet=True), attributes={})
    engine = open_engine(database_url, pooler=pooler, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_create_revision, config, message, empty)
    except CommandError as error:
        raise RevisionError(str(error)) from error
    finally:
        await engine.dispose()


def _create_revision(
    connection: Connection, config: Config, message: str, empty: bool
) -> Path | None:
    folder = ScriptDirectory.from_config(config)
    run = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    if {*run} != {*folder.get_heads()}:
        raise RevisionError("migrations are pending; run `app db upgrade` first")
    config.attributes["connection"] = connection
    written = command.revision(
        config,
        message,
        autogenerate=True,
        head=f"{BRANCH}@head",
        rev_id=_next_revision_id(script.revision for script in folder.walk_revisions()),
        process_revision_directives=_remove_operations if empty else _skip_if_empty,
    )
    return Path(written.path) if written and not isinstance(written, list) else None


def _next_revision_id(revisions: Iterable[str]) -> str:
    numbers = [int(found[1]) for name in revisions if (found := re.match(rf"{BRANCH}_(\d+)", name))]
    return f"{BRANCH}_{max(numbers, default=0) + 1:04}"


def _skip_if_empty(
    _context: MigrationContext, _revision: Any, scripts: list[MigrationScript]
) -> None:
    if all(script.upgrade_ops is None or script.upgrade_ops.is_empty() for script in scripts):
        scripts.clear()
    for script in scripts:
        if script.upgrade_ops is not None and script.downgrade_ops is not None:
            _order_table_drops(script.upgrade_ops)
            script.upgrade_ops.reverse_into(script.downgrade_ops)


def _order_table_drops(steps: UpgradeOps) -> None:
    """Drop a table before those that it refers to. Alembic does not order tables without a model."""
    drops = {step.table_name: step for step in steps.ops if isinstance(step, DropTableOp)}
    referring: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(drops, ()))
    for name, step in drops.items():
        for constraint in step.to_table().foreign_key_constraints:
            target = constraint.elements[0].target_fullname.split(".")[-2]
            if target in drops and target != name:
                referring.add(target, name)
    try:
        order = [*referring.static_order()]
    except CycleError:
        return  # a constraint has to be dropped first, by hand
    rest = [step for step in steps.ops if not isinstance(step, DropTableOp)]
    steps.ops = [*rest, *(drops[name] for name in order)]


def _remove_operations(
    _context: MigrationContext, _revision: Any, scripts: list[MigrationScript]
) -> None:
    for script in scripts:
        for steps in (script.upgrade_ops, script.downgrade_ops):
            if steps is not None:
                steps.ops.clear()
