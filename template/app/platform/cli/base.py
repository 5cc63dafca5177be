"""Settings, the service, the database and failures, as every command uses them."""

from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from app.platform.terminal import say

if TYPE_CHECKING:  # imported when a command runs, so that its help is quick
    from app.platform.config import EnvSettings
    from app.platform.database.engine import Database
    from app.platform.runtime import Context
    from app.platform.service import Service

S = TypeVar("S", bound="EnvSettings")
T = TypeVar("T")

TIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def load(settings: type[S]) -> S:
    """Load `settings`. Without an address of its own, a server is that of the running `app dev`.

    Raises ConfigurationError.
    """
    from app.platform import config

    loaded = config.load(settings)
    unnamed = settings.model_fields.keys() - loaded.model_fields_set
    if unnamed.isdisjoint(("database_url", "kafka_bootstrap_servers")):
        return loaded
    return config.load(settings, **_dev_servers())  # those of other classes are ignored


def advice(settings: "type[EnvSettings]", name: str) -> str:
    """Return a hint for an unreachable server if the setting `name` is not set."""
    named = name.lower() in load(settings).model_fields_set
    if named:
        return ""
    if not Path("app/wiring.py").is_file():
        return f"; run this in the service's folder, beside its `uv run app dev`, or set {name}"
    return f"; start `uv run app dev` in this folder, or set {name}"


async def on_database(work: "Callable[[Database], Awaitable[T]]") -> T:
    """Do `work` on the service's database, without a limit on the time of a statement.

    Raises ConfigurationError.
    """
    from app.platform.database.engine import Database, DatabaseSettings

    database = Database(load(DatabaseSettings), no_timeout=True)
    try:
        return await work(database)
    finally:
        await database.close()


@cache  # its message is printed once
def _dev_servers() -> dict[str, str]:
    if not Path(".dev").is_dir() or not _has_development():
        return {}
    from app.platform.config import ConfigurationError
    from app.platform.dev.errors import DevelopmentDependencyMissing
    from app.platform.dev.servers import running_addresses

    try:
        found = running_addresses()
    except DevelopmentDependencyMissing as error:
        raise ConfigurationError(str(error)) from error
    if found:
        say("using the servers of `app dev`", err=True)
    return found


def require_development(command: str) -> None:
    """Raise ConfigurationError where the development code is missing: in a wheel or an image."""
    if not _has_development():
        from app.platform.config import ConfigurationError

        raise ConfigurationError(
            f"`{command}` is for development: app/platform/dev is neither in the image nor in the wheel;"
            " run it in the project's folder"
        )


def _has_development() -> bool:
    return find_spec("app.platform.dev") is not None


def service_of(ctx: typer.Context) -> "Service":
    """Import and return the service of the command line."""
    load_service: Callable[[], Service] = ctx.obj
    return load_service()


def context_of(ctx: typer.Context) -> "Context":
    """Return the service's settings, events and subscriptions. Raises ConfigurationError."""
    from app.platform.config import Settings
    from app.platform.kafka.settings import KafkaSettings
    from app.platform.runtime import Context

    return Context.of(service_of(ctx), load(Settings).service_name, load(KafkaSettings))


def failure(message: str) -> typer.Exit:
    """Print `message`, and return the exception that ends a command with exit code 1."""
    say(f"error: {message}", err=True)
    return typer.Exit(1)


def unknown(what: str, name: str, names: Iterable[str]) -> typer.Exit:
    """Return the failure of a command whose argument is none of `names`."""
    return failure(f"there is no {what} {name}; there are: {', '.join(names) or 'none'}")


def counted(count: int, one: str, many: str = "") -> str:
    """Format `count` with the noun `one`, or with its plural `many` (by default with an s)."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"
