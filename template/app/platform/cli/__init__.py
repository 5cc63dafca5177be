"""The command line of the service: `app …`. A command imports what it needs when it runs."""

import errno
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from app import DESCRIPTION, PROJECT_NAME
from app.platform.terminal import printable

if TYPE_CHECKING:
    from app.platform.service import Service

# Every command, with the module of this package that has it, and its line in `app --help`.
COMMANDS = {
    "api": ("serve", "Serve the HTTP API, with its documentation at /docs."),
    "worker": ("serve", "Run the consumers; health and metrics are served on the port."),
    "console": (
        "console",
        "Show the service on pages in the browser: look, understand, put right.",
    ),
    "dev": ("serve", "Run everything on this machine, with a PostgreSQL and a Kafka of its own."),
    "relay": (
        "outbox",
        "Send the outbox's events to Kafka; health and metrics are served on the port.",
    ),
    "outbox": ("outbox", "Events on their way to Kafka."),
    "db": ("database", "The database's schema."),
    "topics": ("topics", "The service's Kafka topics."),
    "events": ("events", "The events on the service's topics."),
    "schemas": ("events", "The JSON Schemas of the published events."),
    "asyncapi": (
        "events",
        "Print the AsyncAPI 3.1 document of the events that are sent and received, as JSON.",
    ),
    "event-store": ("event_store", "Streams of events: show, verify, import."),
    "dlq": ("dlq", "Messages that could not be handled."),
    "doctor": (
        "doctor",
        "Check settings, servers, topics, migrations and template, and print what to do.",
    ),
    "new": ("new", "Write a new part of the service: an entity, an event or a consumer."),
    "platform": ("platform", "List the files of app/platform that this service has changed."),
    "trace": ("trace", "Print what one request led to, in order of time."),
    "projections": ("projections", "The read side and its projections."),
}


# A folder that belongs to another user, a file system that is mounted read-only, a file in a folder's place.
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class LazyGroup(TyperGroup):
    """The commands whose modules this service has. Help lists them without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        there = {module for module, _ in COMMANDS.values() if find_spec(f"{__name__}.{module}")}
        return [name for name, (module, _) in COMMANDS.items() if module in there]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        return TyperCommand(cmd_name, callback=None, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(command.name or ""), rest


def load_command(name: str) -> Any:
    """Import and return the command `name`."""
    module = import_module(f"{__name__}.{COMMANDS[name][0]}")
    return get_group(module.commands).commands[name]


def command_line(load_service: "Callable[[], Service]") -> typer.Typer:
    """Build the command line of a service, which is loaded when a command needs it."""
    cli = typer.Typer(
        cls=LazyGroup,
        help=f"{PROJECT_NAME}: {DESCRIPTION}",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @cli.callback()
    def remember(ctx: typer.Context) -> None:
        ctx.obj = load_service

    return cli


def run(load_service: "Callable[[], Service]") -> None:
    """Run the command line. An error is one line on standard error, and exit code 1."""
    if "--help" not in sys.argv:  # help is quick without the libraries of logging
        import_structlog()
        from app.platform import logs

        logs.configure("WARNING")  # until a process that serves reads its own settings
    try:
        command_line(load_service)()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.exit(printable(f"error: {message}"))


def import_structlog() -> None:
    """Import structlog without Rich, which it only needs for tracebacks with local variables.

    The service's logs have none, because those may be passwords. To import Rich would take a tenth of
    the processor time in which `app api` starts.
    """
    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # so an import finds no module
        try:
            import structlog  # noqa: F401
        finally:
            del sys.modules["rich"]


def user_message(error: Exception) -> str | None:
    """Return the message for an `error` that a user can correct; None for a fault of the code."""
    from aiokafka.errors import KafkaError

    from app.platform.cli.base import advice
    from app.platform.config import ConfigurationError
    from app.platform.database.engine import DatabaseSettings
    from app.platform.database.errors import (
        ErrorCategory,
        categorize,
        error_message,
        is_schema_missing,
        is_unavailable,
    )
    from app.platform.kafka.errors import BrokerUnavailable, MessagingError
    from app.platform.kafka.settings import KafkaSettings

    if isinstance(error, BrokerUnavailable):
        return f"{error}{advice(KafkaSettings, 'KAFKA_BOOTSTRAP_SERVERS')}"
    if isinstance(error, ConfigurationError | MessagingError | KafkaError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _NO_ACCESS and error.filename:
        return (
            f"no access to {error.filename}: {error.strerror}; run the command as the owner of the"
            " folder, or make the folder writable"
        )
    if not is_unavailable(error):
        return None
    if is_schema_missing(error):
        return f"{error_message(error)}: run `app db upgrade`"
    if categorize(error) is not ErrorCategory.UNAVAILABLE:
        return f"the database cannot do this at the moment: {error_message(error)}"
    hint = advice(DatabaseSettings, "DATABASE_URL")
    return f"the database is unavailable: {error_message(error)}{hint}"
