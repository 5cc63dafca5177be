"""The console as an application: in a process of its own, or mounted into that of `app dev`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

import structlog
from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from app.platform import telemetry
from app.platform.config import HttpSettings, load
from app.platform.console.access import ConsoleSettings, check_host, listed
from app.platform.console.pages import Console, console_of
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.errors import (
    ConnectionPoolEmpty,
    DatabaseReadOnly,
    DatabaseUnavailable,
    summary,
)
from app.platform.database.migrations import SchemaCheck
from app.platform.health import Health
from app.platform.http.browser import Guard
from app.platform.http.server import listen, run
from app.platform.kafka.admin import TopicAdmin
from app.platform.kafka.errors import MessagingError
from app.platform.processes import Processes
from app.platform.runtime import Context
from app.platform.service import Service

log = structlog.get_logger(__name__)

# The modules of pages in the order of the navigation, with the texts of their links. Those of the
# service's modules are only there with their module.
PAGES = {
    "overview": "Overview",
    "topics": "Topics",
    "letters": "Dead letters",
    "outbox": "Outbox",
    "projections": "Projections",
    "streams": "Streams",
    "inbox": "Inbox",
    "story": "Story",
    "events": "Events",
}


def create_console(
    service: Service,
    context: Context,
    database_settings: DatabaseSettings,
    settings: ConsoleSettings,
    processes: Sequence[str] | None = None,
) -> Starlette:
    """Create the console of `service`. It shows the processes at the addresses `processes`; None stands
    for the process that serves it."""
    found = {name: text for name, text in PAGES.items() if find_spec(f"{__package__}.{name}")}
    routes = [r for name in found for r in import_module(f"{__package__}.{name}").ROUTES]
    database = Database(database_settings)
    guard = Middleware(
        Guard,
        hosts=listed(settings.console_hosts),
        hosts_setting="CONSOLE_HOSTS",
        proxies=listed(settings.console_trusted_proxies),
        user_header=settings.console_user_header,
    )
    app = Starlette(
        routes=[
            *routes,
            *_HEALTH,
            Mount("/static", StaticFiles(packages=[(__package__, "static")])),
        ],
        middleware=[guard],
        exception_handlers={HTTPException: _refused, **dict.fromkeys(_AWAY, _away)},
        lifespan=opened,
    )
    app.state.console = Console(
        service=service,
        context=context,
        database=database,
        unlimited=Database(database_settings, no_timeout=True),
        health=_health(database, context),
        settings=settings,
        navigation={"" if name == "overview" else name: text for name, text in found.items()},
    )
    app.state.processes, app.state.streams = Processes(processes), set()
    return app


@asynccontextmanager
async def opened(app: Starlette) -> AsyncIterator[None]:
    """Release what the console has opened at the end of the block."""
    try:
        yield
    finally:
        await app.state.processes.close()
        await app.state.console.jobs.close()
        await app.state.console.database.close()
        await app.state.console.unlimited.close()


def _health(database: Database, context: Context) -> Health:
    async def kafka() -> None:
        async with TopicAdmin.connected(context.kafka):
            pass

    health = Health()
    health.add_readiness_check("database", database.ping)
    health.add_readiness_check("schema", SchemaCheck(database.probe).check)
    health.add_readiness_check("kafka", kafka)
    return health


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "ok", "checks": {}})


async def _ready(request: Request) -> Response:
    report = await console_of(request).health.ready()
    return JSONResponse(report.model_dump(), 200 if report.status == "ok" else 503)


_HEALTH = [Route("/health/live", _live), Route("/health/ready", _ready)]

# Errors of the servers: they are shown, and the next request may succeed.
_AWAY = (
    MessagingError,
    KafkaError,
    SQLAlchemyError,
    DatabaseUnavailable,
    DatabaseReadOnly,
    ConnectionPoolEmpty,
    OSError,
)


async def _away(request: Request, error: Exception) -> Response:
    reason = str(error) if isinstance(error, MessagingError) else summary(error)
    log.warning("console page failed", path=request.url.path, error=reason)
    return _problem(request, 503, "A server does not answer", reason)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = {403: "Not allowed", 404: "Not found"}.get(error.status_code, "Not possible")
    return _problem(request, error.status_code, title, error.detail)


def _problem(request: Request, status: int, title: str, reason: str) -> Response:
    page = console_of(request).render(request, "problem", title, reason=reason)
    page.status_code = status
    return page


def serve_console(app: Starlette, host: str, port: int) -> None:
    """Serve a console until a signal.

    Raises ConfigurationError for a port in use, and for an address at which everybody could act.
    """
    settings: ConsoleSettings = app.state.console.settings
    check_host(host, settings)
    listener = listen(host, port)
    try:
        log.info("console", url=f"http://{host}:{port}/", actions=settings.console_actions)
        with telemetry.for_command():  # a replay is a part of its message's trace
            run(app, listener, load(HttpSettings))
    finally:
        listener.close()
