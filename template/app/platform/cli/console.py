"""The console: `app console`."""

import typer

from app.platform.cli.base import context_of, failure, load, service_of
from app.platform.cli.serve import Host, Port

commands = typer.Typer()


@commands.command()
def console(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Show the service on pages in the browser: look, understand, put right.

    It reads from Kafka without a group and commits nothing. CONSOLE_ACTIONS=true allows replays and other
    changes. It listens on CONSOLE_HOST, 127.0.0.1 by default, and never on LISTEN_HOST.
    """
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise failure("the package jinja2 is missing: install the service with its extra `console`")
    from app.platform.config import Settings
    from app.platform.console.access import ConsoleSettings, listed
    from app.platform.console.app import create_console, serve_console
    from app.platform.database.engine import DatabaseSettings
    from app.platform.http.server import configure_logs
    from app.platform.runtime import naming_all_wrong_settings

    service = service_of(ctx)
    with naming_all_wrong_settings([ConsoleSettings]):
        context, database = context_of(ctx), load(DatabaseSettings)
        general, settings = load(Settings), load(ConsoleSettings)
    configure_logs(general)
    processes = listed(settings.console_processes)
    app = create_console(service, context, database, settings, processes)
    serve_console(app, host or settings.console_host, port or general.listen_port or 8003)
