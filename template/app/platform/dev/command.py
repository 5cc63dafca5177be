"""`app dev`: servers, schema, topics, then API and consumers in this process."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from asyncpg import PostgresError
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from app.platform import logs
from app.platform.config import HttpSettings, Settings, load
from app.platform.database import migrations
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.errors import DatabaseUnavailable
from app.platform.database.url import async_url
from app.platform.dev.errors import DevelopmentServerError
from app.platform.dev.servers import BrokerChoice, Servers, publish_addresses, say
from app.platform.dev.training import train_in_background
from app.platform.http.app import create_app
from app.platform.http.server import STOP_SIGNALS, listen, run
from app.platform.kafka.admin import provision
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Role, Service
from app.platform.terminal import say_block

HOST = "127.0.0.1"
FOLDER = Path(".dev")

_WATCH_SECONDS = 0.5


class StopRequested(KeyboardInterrupt):
    """A signal came before the service was up, or after it went down."""


class DatabaseUnusable(DevelopmentServerError):
    """DATABASE_URL names a database that cannot be reached or does not let us in."""


def run_dev(service: Service, port: int, broker: BrokerChoice, fresh: bool) -> None:
    """Run all of it until a signal. Exits with one line if it cannot start."""
    settings = load(Settings)
    logs.configure(settings.log_level, settings.log_format)
    with _signals_interrupt() as signals:
        try:
            with closing(listen(HOST, port)) as listener:
                servers = _servers(broker, fresh)
                try:
                    servers.start()
                    _export_addresses(servers)
                    with publish_addresses(servers):
                        asyncio.run(_prepare(service))
                        app = create_app(service, set(Role))
                        announced_app = _with_announcement(
                            app, _start_message(service, servers, port), servers, signals
                        )
                        run(announced_app, listener, load(HttpSettings))
                    if servers.find_ended() is not None:
                        sys.exit(1)  # it was said when it happened
                finally:
                    signals.ignored = True  # what is being stopped is stopped; it takes seconds
                    servers.stop()
        except DevelopmentServerError as error:
            sys.exit(f"error: {error}")
        except StopRequested:
            sys.exit("stopped before the service was up")


def _servers(broker: BrokerChoice, fresh: bool) -> Servers:
    """The servers that neither the environment nor `.env` names."""
    database, kafka = load(DatabaseSettings), load(KafkaSettings)
    given_url = "database_url" in database.model_fields_set
    given_kafka = "kafka_bootstrap_servers" in kafka.model_fields_set
    return Servers(
        FOLDER,
        broker,
        fresh=fresh,
        database_url=database.database_url.get_secret_value() if given_url else None,
        kafka_bootstrap_servers=kafka.kafka_bootstrap_servers if given_kafka else None,
    )


def _export_addresses(servers: Servers) -> None:
    """From here on the settings are the servers' addresses, as if they had been set."""
    os.environ["DATABASE_URL"] = servers.database_url
    os.environ["KAFKA_BOOTSTRAP_SERVERS"] = servers.kafka_bootstrap_servers


async def _prepare(service: Service) -> None:
    await _check_database()
    context = Context.of(service, load(Settings).service_name, load(KafkaSettings))
    database = load(DatabaseSettings)
    await asyncio.gather(
        migrations.upgrade(
            database.database_url.get_secret_value(), pooler=database.database_pooler
        ),
        provision(context.kafka, context.topics()),
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


def _with_announcement(app: FastAPI, where: str, servers: Servers, signals: "_Signals") -> FastAPI:
    """`app`, which says `where` everything is once it is up."""
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def announced(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            signals.ignored = True  # the server has its own way with the first, and that is enough
            say_block(where, err=True)
            with train_in_background(FOLDER / "training") if servers.kafka else nullcontext():
                async with _watching(servers):
                    yield

    app.router.lifespan_context = announced
    return app


@asynccontextmanager
async def _watching(servers: Servers) -> AsyncIterator[None]:
    """Stop this process when one of its servers ends: without it nothing here would go on."""
    watch = asyncio.create_task(_watch(servers), name="development-servers")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(servers: Servers) -> None:
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        if (ended := servers.find_ended()) is not None:
            say(f"error: {ended}; stopping the rest, `uv run app dev` starts all of it again")
            signal.raise_signal(signal.SIGTERM)
            return


def _start_message(service: Service, servers: Servers, port: int) -> str:
    api = f"http://{HOST}:{port}"
    broker = {"kafka": "Apache Kafka", "mock": "Mock broker", "external": "Kafka"}
    first = ""
    if service.first_request is not None:
        path, body = service.first_request
        first = f"""
  Try it:
    curl {api}{path} -H 'Content-Type: application/json' -d '{body}'
"""
    return f"""
  API documentation  {api}/docs
  Metrics            {api}/metrics
  {broker[servers.broker_kind]:<17}  {servers.kafka_bootstrap_servers}
  Database           {_without_password(servers.database_url)}
  Data and logs      {FOLDER.resolve()}
{first}
  `uv run app ...` in this folder uses these servers. Ctrl-C stops all of it.
"""


def _without_password(url: str) -> str:
    return async_url(url).set(drivername="postgresql").render_as_string(hide_password=True)


class _Signals:
    """The reaction to a stop signal: raise StopRequested, so that `finally` stops the servers.

    Once they are `ignored`, nothing. One often comes twice: from the terminal, and from uv.
    """

    def __init__(self) -> None:
        self.ignored = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            _drop_output()
        if not self.ignored:
            raise StopRequested


@contextmanager
def _signals_interrupt() -> Iterator[_Signals]:
    """Stop signals do what `_Signals` says. Those that are ignored are so to the end of the process:
    what comes after the block is its exit, which has its code already."""
    signals = _Signals()
    before = {number: signal.signal(number, signals) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # Not by `signals`: Python forgets its own handlers a little before its process ends.
            signal.signal(number, signal.SIG_IGN if signals.ignored else handler)


def _drop_output() -> None:
    """A closed terminal takes no output any more; writing to it would raise while we stop."""
    with Path(os.devnull).open("w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())
