"""The command line, a module a group. `app/cli.py` says which are plugged in."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import typer

from app import config, wiring
from app.config import ConfigurationError, EnvSettings, Settings
from app.database import Database, DatabaseSettings
from app.kafka.event import EventRegistry
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.kafka.topics import Topic, wanted
from app.terminal import say

S = TypeVar("S", bound=EnvSettings)
T = TypeVar("T")


def load(settings: type[S]) -> S:
    """`settings` for a command: a server that nobody names is that of the `app dev` running here.

    Raises ConfigurationError.
    """
    loaded = config.load(settings)
    unnamed = settings.model_fields.keys() - loaded.model_fields_set
    if unnamed.isdisjoint(("database_url", "kafka_bootstrap_servers")):
        return loaded
    return config.load(settings, **_dev_servers())  # those of other classes are ignored


def advice(settings: type[EnvSettings], name: str) -> str:
    """What to do when the server that `name` is about is away, if nobody named one."""
    named = name.lower() in load(settings).model_fields_set
    return "" if named else f"; start `uv run app dev` in this folder, or set {name}"


async def on_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Do `work` on the service's database. Its statements may take as long as they need.

    Raises ConfigurationError.
    """
    database = Database(load(DatabaseSettings), patient=True)
    try:
        return await work(database)
    finally:
        await database.close()


@cache  # it is said once
def _dev_servers() -> dict[str, str]:
    if not Path(".dev").is_dir():  # as in production, which has no development dependencies
        return {}
    from app.dev.process import DevelopmentDependencyMissing
    from app.dev.servers import of_running

    try:
        found = of_running()
    except DevelopmentDependencyMissing as error:
        raise ConfigurationError(str(error)) from error
    if found:
        say("using the servers of `app dev`", err=True)
    return found


def failure(message: str) -> typer.Exit:
    """What to raise to end a command with exit code 1, once the message has been said."""
    say(f"error: {message}", err=True)
    return typer.Exit(1)


def unknown(what: str, name: str, names: Iterable[str]) -> typer.Exit:
    """The failure of a command that was given a name which is none of `names`."""
    return failure(f"there is no {what} {name}; there are: {', '.join(names) or 'none'}")


def counted(count: int, one: str, many: str = "") -> str:
    """So many of what is called `one`, or `many` if it is not one (by default with an s)."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


@dataclass(frozen=True)
class Context:
    """Settings, events and subscriptions of the service."""

    kafka: KafkaSettings
    registry: EventRegistry
    subscriptions: Sequence[Subscription]

    @classmethod
    def from_environment(cls) -> "Context":
        """Raises ConfigurationError, also for events and consumers that do not fit together."""
        service, kafka = load(Settings), load(KafkaSettings)
        try:
            registry = EventRegistry(service.service_name, wiring.EVENTS)
            context = cls(kafka, registry, wiring.SUBSCRIPTIONS)
            context.topics()
        except (ValueError, LookupError) as error:
            raise ConfigurationError(f"wrong events or consumers: {error}") from error
        return context

    def topics(self) -> list[Topic]:
        """Every topic that the service owns."""
        return wanted(self.kafka, self.registry, self.subscriptions)
