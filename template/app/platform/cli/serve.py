"""Processes: `app api`, `app worker`, `app dev`."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.platform.cli.base import context_of, load, require_development, service_of

commands = typer.Typer()

Host = Annotated[
    str | None, typer.Option(help="Address to listen on, instead of LISTEN_HOST (or 127.0.0.1).")
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Port to listen on, instead of LISTEN_PORT (or one of the role's own, from 8000).",
        min=1,
        max=65535,
    ),
]
KafkaOf = Annotated[
    Path | None,
    typer.Option(help="Share the Kafka of the service in this folder.", metavar="FOLDER"),
]
Otlp = Annotated[
    str | None,
    typer.Option(
        help="Send the traces to this collector, too: http://localhost:4318.", metavar="URL"
    ),
]
Reload = Annotated[
    bool,
    typer.Option("--reload", help="Restart the application when app, migrations or .env change."),
]
ServersOnly = Annotated[
    bool,
    typer.Option("--servers-only", help="Run no application: only servers, schema, topics."),
]

_PORTS = {"api": 8000, "worker": 8001, "relay": 8002}


class Broker(StrEnum):
    """The broker that `app dev` starts."""

    KAFKA = "kafka"
    MOCK = "mock"


@commands.command()
def api(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Serve the HTTP API, with its documentation at /docs."""
    serve_as(ctx, "api", host, port)


@commands.command()
def worker(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Run the consumers; health and metrics are served on the port."""
    serve_as(ctx, "worker", host, port)


def serve_as(ctx: typer.Context, role: str, host: str | None, port: int | None) -> None:
    """Run a process with `role` until a signal. `host` and `port` replace the settings.

    Raises ConfigurationError, before anything starts.
    """
    from app.platform.config import HttpSettings, Settings
    from app.platform.database.engine import DatabaseSettings
    from app.platform.http.server import serve
    from app.platform.runtime import Configuration, naming_all_wrong_settings
    from app.platform.service import Role

    service = service_of(ctx)
    with naming_all_wrong_settings(service.settings):
        context = context_of(ctx)  # also checks events and consumers
        settings = load(Settings)
        configuration = Configuration(
            settings, context.kafka, load(DatabaseSettings), load(HttpSettings)
        )
    where = host or settings.listen_host, port or settings.listen_port or _PORTS[role]
    serve(service, {Role(role)}, configuration, *where)


@commands.command()
def dev(
    ctx: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on, instead of 8000 or the next free one.", min=1, max=65535
        ),
    ] = None,
    broker: Annotated[
        Broker, typer.Option(help="A real Apache Kafka, or a mock inside the process.")
    ] = Broker.KAFKA,
    kafka_of: KafkaOf = None,
    otlp: Otlp = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the data first.")] = False,
    reload: Reload = False,
    servers_only: ServersOnly = False,
) -> None:
    """Run everything on this machine, with a PostgreSQL and a Kafka of its own.

    Where DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS or DEV_KAFKA_OF are set, those are used instead.
    """
    require_development("app dev")
    from app.platform.cli import user_message
    from app.platform.dev.command import Mode, ServerOptions, run_dev

    if reload and servers_only:
        raise typer.BadParameter("--reload and --servers-only exclude each other")
    if otlp is not None:
        _send_traces_to(otlp, servers_only)
    mode = Mode.RELOAD if reload else Mode.SERVERS_ONLY if servers_only else Mode.IN_PROCESS
    servers = ServerOptions(broker.value, kafka_of, fresh=fresh)
    run_dev(ctx.obj, port, servers, explain=user_message, mode=mode)


def _send_traces_to(url: str, servers_only: bool) -> None:
    """Set the variables that lead this process, and those that it starts, to the collector."""
    if servers_only:
        raise typer.BadParameter(
            "--servers-only runs nothing that is traced: set OTEL_EXPORTER_OTLP_ENDPOINT for the"
            " processes beside it, instead of --otlp"
        )
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url} is no address of a collector: give http://HOST:4318")
    os.environ["OTEL_TRACES_EXPORTER"] = "otlp"
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{url.removesuffix('/')}/v1/traces"
