"""Migrations: run them (`app db upgrade`, tests), revert them, and check that they have run.

Alembic is imported where it is used: a process whose database is up to date starts without it.
"""

import ast
import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

import app
from app.platform.config import ConfigurationError
from app.platform.database.engine import DISABLE_TIMEOUTS, Probe, open_engine

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

log = structlog.get_logger(__name__)

T = TypeVar("T")

# An arbitrary number that no other advisory lock uses.
_LOCK_KEY = 0x5C4E3A
_POLL_SECONDS = 0.2


class UnknownRevision(ConfigurationError):
    """The database has migrations whose files are missing."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self.revisions = revisions
        super().__init__(
            f"the database has the migration {', '.join(revisions)}, which is not in"
            f" {migrations_folder()}. Does it belong to a newer version of the service? Deploy that."
            " To a module that was switched off? Bring its file back from git."
        )


class InconsistentRevisions(ConfigurationError):
    """Two migrations have one name, or one follows a migration that is not there."""


class UnknownTarget(ConfigurationError):
    """The target of a downgrade is no revision of this service."""


class MigrationsPending(Exception):
    """Migrations have not run yet. `app db upgrade` runs them."""

    def __init__(self, revisions: Sequence[str]) -> None:
        are = "is" if len(revisions) == 1 else "are"
        noun = "migration" if len(revisions) == 1 else "migrations"
        super().__init__(f"{noun} {', '.join(revisions)} {are} missing; run `app db upgrade`")


class MigrationsNotFound(Exception):
    """The folder `migrations` is neither in the package nor beside it."""


async def upgrade(database_url: str, *, pooler: bool = False) -> None:
    """Run the pending migrations of every module (`alembic upgrade heads`).

    Simultaneous upgrades run one after the other. `pooler` is as in DatabaseSettings.

    Raises UnknownRevision, MigrationsNotFound, the errors of a migration that fails, and the
    driver's errors.
    """
    applied: list[str] = await _with_migration_lock(database_url, pooler, _upgrade)
    if applied:
        log.info("migrations applied", revisions=applied)


async def downgrade(database_url: str, target: str, *, pooler: bool = False) -> None:
    """Revert the migrations after `target`, on its branch (`alembic downgrade`).

    `target` is a revision, or relative to a branch's newest one (`core@-1`).

    Raises UnknownTarget.
    """
    from alembic import command
    from alembic.util import CommandError

    def revert(connection: Connection, config: "Config") -> None:
        config.attributes["connection"] = connection
        try:
            command.downgrade(config, target)
        except CommandError as error:
            raise UnknownTarget(f"cannot downgrade to {target}: {error}") from error

    await _with_migration_lock(database_url, pooler, revert)


@dataclass(frozen=True)
class SchemaStatus:
    """The migrations in which the database and the folder of migrations differ."""

    pending: Sequence[str]
    """Still to be run, oldest first; none on a database with unknown ones."""
    unknown: Sequence[str]
    """Run by a newer version of the service, or by a module that was switched off."""


async def read_status(database_url: str, *, pooler: bool = False) -> SchemaStatus:
    """Compare the database with the folder of migrations. Raises what `upgrade` raises."""
    engine = open_engine(database_url, pooler=pooler, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_read_status, alembic_config())
    finally:
        await engine.dispose()


class SchemaCheck:
    """A readiness check: the migrations of the service have run."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._heads: frozenset[str] | None = None
        self._scripts: ScriptDirectory | None = None
        self._complete = False

    async def check(self) -> None:
        """Raise MigrationsPending, MigrationsNotFound, InconsistentRevisions, or the driver's errors.

        After a success the database is not asked again.
        """
        if self._complete:
            return
        if self._heads is None:  # reads files, so not in the event loop's thread
            self._heads = await asyncio.to_thread(read_heads, migrations_folder())
        run = await self._revisions()
        if not self._heads or self._heads != {*run}:
            await self._compare(run)
        self._complete = True

    async def _compare(self, run: tuple[str, ...]) -> None:
        """Have Alembic compare. Its import takes a good part of a process's start."""
        if self._scripts is None:
            self._scripts = await asyncio.to_thread(_load_scripts)
        if pending := _pending(self._scripts, run):
            raise MigrationsPending(pending)

    async def _revisions(self) -> tuple[str, ...]:
        # Alembic would run more queries.
        ((table,),) = await self._probe.fetch("SELECT to_regclass('alembic_version')::text")
        if table is None:
            return ()
        rows = await self._probe.fetch("SELECT version_num FROM alembic_version")
        return tuple(row[0] for row in rows)


def read_heads(folder: Path) -> frozenset[str]:
    """Return the newest revision of each branch in `folder`, without Alembic.

    There are none if the files do not assign all revisions as literals: then only Alembic knows.
    """
    files = _revision_files(folder)
    try:
        found = [_assigned_literals(file) for file in files]
        revisions = {each["revision"] for each in found}
        followed = {name for each in found for name in _names(each["down_revision"])}
    except (OSError, SyntaxError, ValueError, KeyError):
        return frozenset()
    is_whole = len(revisions) == len(files) and followed < revisions
    return frozenset(revisions - followed if is_whole else ())


def check_revisions(folder: Path) -> None:
    """Raise InconsistentRevisions where Alembic would fail with a traceback of its own.

    A merge of two branches leaves that behind, if each has a migration of the same number.
    """
    files: dict[str, Path] = {}
    followed: dict[str, Path] = {}
    for file in _revision_files(folder):
        try:
            found = _assigned_literals(file)
            names = [*_names(found.get("down_revision"))]
        except (OSError, SyntaxError, ValueError):
            return  # only Alembic can say what is declared
        revision = found.get("revision")
        if not isinstance(revision, str):
            return
        if revision in files:
            raise InconsistentRevisions(
                f"{files[revision].name} and {file.name} both are the migration {revision}: give the"
                " one that has not run anywhere the next free number (its file's name and `revision`),"
                " and the newest of the others as its `down_revision`"
            )
        files[revision] = file
        followed |= dict.fromkeys(names, file)
    for name in sorted(followed.keys() - files.keys()):
        raise InconsistentRevisions(
            f"{followed[name].name} follows the migration {name}, which is not in"
            f" {folder / 'versions'}: bring its file back from git, or correct `down_revision`"
        )


def _revision_files(folder: Path) -> list[Path]:
    found = (folder / "versions").glob("*.py")
    return sorted(file for file in found if not file.name.startswith((".#", "__")))


def _assigned_literals(file: Path) -> dict[str, Any]:
    """Return the literals that a module assigns to the names of revisions, or raise ValueError."""
    return {
        target.id: ast.literal_eval(line.value)
        for line in ast.parse(file.read_bytes()).body
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None
        for target in (line.targets if isinstance(line, ast.Assign) else [line.target])
        if isinstance(target, ast.Name) and target.id in {"revision", "down_revision"}
    }


def _names(revisions: str | Iterable[str] | None) -> Iterable[str]:
    """Return the revisions that one follows: none, one, or those that it merges."""
    return [revisions] if isinstance(revisions, str) else revisions or ()


def _load_scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config())
    scripts.get_heads()  # reads the files now, not at the first use
    return scripts


def _pending(scripts: "ScriptDirectory", run: tuple[str, ...]) -> list[str]:
    """Return the pending migrations, oldest first, of a database with the revisions `run`.

    A revision without a file belongs to a newer service: then nothing is pending, so that the old
    version stays ready while the new one is rolled out.
    """
    there = {script.revision for script in scripts.walk_revisions()}
    if not there.issuperset(run):
        return []
    pending = scripts.iterate_revisions("heads", run, implicit_base=True)
    return [script.revision for script in pending][::-1]


def newest_of_branch(revision: str) -> str:
    """Return this code's newest revision of the branch to which `revision` belongs, by its name.

    Without one it is the name for the empty database, `base`.
    """
    branch = revision.rpartition("_")[0]
    heads = _load_scripts().get_heads()
    return next((head for head in heads if head.rpartition("_")[0] == branch), "base")


def alembic_config() -> "Config":
    """Return Alembic's configuration, wherever the service is installed."""
    from alembic.config import Config

    folder = migrations_folder()
    check_revisions(folder)
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


async def _with_migration_lock(
    database_url: str, pooler: bool, work: "Callable[[Connection, Config], T]"
) -> T:
    config = alembic_config()
    engine = open_engine(database_url, pooler=pooler, poolclass=NullPool)
    try:
        async with _migration_lock(engine), engine.connect() as connection:
            return await connection.run_sync(work, config)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, config: "Config") -> list[str]:
    from alembic import command

    status = _read_status(connection, config)
    if status.unknown:
        raise UnknownRevision(status.unknown)
    config.attributes["connection"] = connection
    command.upgrade(config, "heads")
    return list(status.pending)


def _read_status(connection: Connection, config: "Config") -> SchemaStatus:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    run = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()  # Alembic does not commit a transaction that it has not begun
    return SchemaStatus(_pending(scripts, run), sorted({*run} - known))


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
