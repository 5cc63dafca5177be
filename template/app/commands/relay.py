"""The relay's process: `app relay`."""

import typer

from app.commands.serve import Host, Port
from app.runtime import Role
from app.server import serve

commands = typer.Typer()


@commands.command()
def relay(host: Host = "127.0.0.1", port: Port = 8002) -> None:
    """Send the outbox's events to Kafka; health and metrics are served on the port.

    Any number of relays may run: they share the work.
    """
    serve({Role.RELAY}, host, port)
