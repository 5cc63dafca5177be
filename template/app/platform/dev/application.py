"""The application on the servers of `app dev`: preparation, and the child of `--reload`."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from asyncpg import PostgresError
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from app.platform import logs, telemetry, terminal
from app.platform.config import HttpSettings, Settings, TelemetrySettings, load
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.errors import DatabaseUnavailable
from app.platform.dev import asyncapi_page, console_page
from app.platform.dev.clearing import delete_topics_and_groups
from app.platform.dev.errors import DevelopmentServerError, import_development
from app.platform.dev.schema import prepare_schema
from app.platform.dev.servers import APP_LOG, say
from app.platform.http.app import create_app
from app.platform.http.server import run
from app.platform.kafka.admin import provision
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Role, Service

LOADED, READY = "loaded", "ready"
FIRST_START, START = "first start", "start"

_ORPHAN_SECONDS = 30.0


class DatabaseUnusable(DevelopmentServerError):
    """The database of DATABASE_URL cannot be reached, or refuses the connection."""


async def prepare(service: Service, own_broker: bool, clear: bool = False) -> None:
    """Migrate the database and create the topics; foreign ones on a broker of `app dev` only.

    `clear` deletes the service's topics and consumer groups first.
    Raises DatabaseUnusable, SchemaTooNew and ServerFailed.
    """
    await _check_database()
    context = Context.of(service, load(Settings).service_name, load(KafkaSettings))
    if clear:
        await asyncio.to_thread(delete_topics_and_groups, context)
    foreign = context.foreign_topics() if own_broker else []
    _, created = await asyncio.gather(
        prepare_schema(), provision(context.kafka, context.topics() + foreign)
    )
    for topic in foreign:
        if topic.name in created:
            say(
                f"created {topic.name}, which the service {topic.owner} publishes to: `app events send` "
                "does so in its place, and `app dev --kafka-of FOLDER` shares its Kafka"
            )


async def _check_database() -> None:
    database = Database(load(DatabaseSettings))
    try:
        await database.ping()
    except (DatabaseUnavailable, DBAPIError, PostgresError, OSError) as error:
        raise DatabaseUnusable(
            f"the database of DATABASE_URL cannot be used: {error}; correct DATABASE_URL, or unset "
            "it to get a server of its own"
        ) from error
    finally:
        await database.close()


def create_dev_app(service: Service) -> FastAPI:
    """Create the application with all roles, and with the pages `/asyncapi`, `/dev/traces` and `/console`.

    It is traced, whether OTEL_* ask for it or not.
    """
    import_development("opentelemetry.sdk", "opentelemetry-sdk")
    from app.platform.dev import traces_page

    buffer = traces_page.TraceBuffer()
    provider = telemetry.tracer_provider(
        load(Settings).service_name, load(TelemetrySettings), [buffer]
    )
    app = create_app(service, set(Role), tracer_provider=provider)
    asyncapi_page.install(app, service)
    traces_page.install(app, buffer, is_on=provider is not None)
    console_page.install(app, service)
    return app


def once_started(app: FastAPI, scope: Callable[[], AbstractAsyncContextManager[None]]) -> FastAPI:
    """Enter `scope` when `app` has started, and leave it before `app` stops."""
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def scoped(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app), scope():
            yield

    app.router.lifespan_context = scoped
    return app


def run_child(
    load_service: Callable[[], Service],
    explain: Callable[[Exception], str | None],
    listener: socket.socket,
    own_broker: bool,
    clear: bool,
    supervisor: Connection,
) -> None:
    """Load the application, wait for a start, and serve until SIGTERM or the supervisor's end.

    `clear` is for the first start.
    """
    terminal.prepare_streams()
    if hasattr(os, "setsid"):  # Ctrl-C in the terminal is the supervisor's
        os.setsid()
    started: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_follow, args=(supervisor, started), daemon=True).start()
    try:
        settings = load(Settings)
        logs.configure(settings.log_level, settings.log_format, APP_LOG)
        service = load_service()
        app = create_dev_app(service)
        supervisor.send((LOADED, None))
        is_first = started.get() == FIRST_START
        asyncio.run(prepare(service, own_broker=own_broker, clear=clear and is_first))
        run(
            once_started(app, lambda: _reporting(supervisor, service)), listener, load(HttpSettings)
        )
    except Exception as error:
        own = isinstance(error, DevelopmentServerError)
        _show(error, str(error) if own else explain(error))
        sys.exit(1)


def _follow(supervisor: Connection, started: "SimpleQueue[str]") -> None:
    """Wait for a start, then for the end of the supervisor, which this process does not outlive."""
    try:
        started.put(supervisor.recv())
        supervisor.recv()
    except (EOFError, ConnectionError):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


@asynccontextmanager
async def _reporting(supervisor: Connection, service: Service) -> AsyncIterator[None]:
    supervisor.send((READY, service.first_request))
    yield


def _show(error: Exception, message: str | None) -> None:
    """Print the message or, without one, the traceback from the project's first frame."""
    if message is not None:
        terminal.say(f"error: {message}", err=True)
        return
    shown = traceback.TracebackException.from_exception(error)
    own = [Path(frame.filename).is_relative_to(Path.cwd()) for frame in shown.stack]
    own = [
        is_own and frame.filename != __file__
        for is_own, frame in zip(own, shown.stack, strict=True)
    ]
    del shown.stack[: own.index(True) if any(own) else len(own)]
    terminal.say_block("".join(shown.format()).rstrip(), err=True)
