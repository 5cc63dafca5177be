"""Processes: `app api`, `app worker`, `app dev`."""

from enum import StrEnum
from typing import Annotated

import typer

from app.commands import Context, load
from app.config import Settings
from app.database import DatabaseSettings
from app.runtime import Configuration, Role
from app.server import serve

commands = typer.Typer()

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]


class Broker(StrEnum):
    """Which broker `app dev` starts."""

    KAFKA = "kafka"
    MOCK = "mock"


@commands.command()
def api(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Serve the HTTP API, with its documentation at /docs."""
    serve_as(Role.API, host, port)


@commands.command()
def worker(host: Host = "127.0.0.1", port: Port = 8001) -> None:
    """Run the consumers; health and metrics are served on the port."""
    serve_as(Role.WORKER, host, port)


def serve_as(role: Role, host: str, port: int) -> None:
    """Run a process with `role` until a signal.

    Raises ConfigurationError, before anything starts.
    """
    context = Context.from_environment()  # for what it raises, too
    configuration = Configuration(load(Settings), context.kafka, load(DatabaseSettings))
    serve({role}, configuration, host, port)


@commands.command()
def dev(
    port: Port = 8000,
    broker: Annotated[
        Broker, typer.Option(help="A real Apache Kafka, or a mock inside the process.")
    ] = Broker.KAFKA,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away the data first.")] = False,
) -> None:
    """Run everything on this machine, with a PostgreSQL and a Kafka of its own.

    Where DATABASE_URL or KAFKA_BOOTSTRAP_SERVERS are set, those are used instead.
    """
    # Development dependencies are not there in production: nothing else may import this.
    from app.dev.command import run_dev

    run_dev(port=port, broker=broker.value, fresh=fresh)
