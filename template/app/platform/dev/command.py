"""`app dev`: servers, schema, topics, then API and consumers."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from app.platform import logs
from app.platform.config import HttpSettings, Settings, load
from app.platform.database.engine import DatabaseSettings
from app.platform.database.url import async_url
from app.platform.dev.application import create_dev_app, once_started, prepare, run_child
from app.platform.dev.errors import DevelopmentServerError, KafkaNotShared
from app.platform.dev.reload import FirstRequest, RunChild, supervise
from app.platform.dev.servers import (
    ADDRESSES,
    APP_LOG,
    FOLDER,
    BrokerChoice,
    Servers,
    publish_addresses,
    say,
)
from app.platform.dev.sharing import SharedKafka, Sharer, find_kafka
from app.platform.dev.signals import StopRequested, StopSignals, handling_stop_signals
from app.platform.dev.training import train_in_background
from app.platform.http.server import PortInUse, listen, run
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import naming_all_wrong_settings
from app.platform.service import Service
from app.platform.terminal import say_block

HOST = "127.0.0.1"
PORTS = range(8000, 8010)

_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class ServerOptions:
    """Options of the servers. `kafka_of` is the folder of the service whose Kafka is used."""

    broker: BrokerChoice = "kafka"
    kafka_of: Path | None = None
    fresh: bool = False


class Mode(StrEnum):
    """The way in which `app dev` runs the application."""

    IN_PROCESS = "in-process"
    RELOAD = "reload"
    SERVERS_ONLY = "servers-only"


def run_dev(
    load_service: Callable[[], Service],
    port: int | None,
    options: ServerOptions,
    *,
    explain: Callable[[Exception], str | None] = str,
    mode: Mode = Mode.IN_PROCESS,
) -> None:
    """Run the servers and, by `mode`, the application until a signal.

    `explain` returns the message for an error that a user can correct. Exits with one line if it
    cannot start, and with code 1 if a server ends by itself.
    """
    with naming_all_wrong_settings():
        settings = load(Settings)
    logs.configure(settings.log_level, settings.log_format)
    # With --reload a service that cannot be loaded yet is no reason to end.
    service = load_service() if mode is not Mode.RELOAD else None
    with handling_stop_signals() as signals:
        try:
            servers = _configure_servers(options)
            with _listening(port, mode) as listener, _running(servers, signals):
                if listener is None:
                    assert service is not None
                    _keep_servers(service, servers)
                elif service is None:
                    child = partial(run_child, load_service, explain, listener, *_broker(servers))
                    _reload(child, _port(listener), servers, signals)
                else:
                    _serve(service, listener, servers, signals)
                ended = servers.find_ended()
            if ended is not None:
                sys.exit(1)  # its message was printed when it happened
        except DevelopmentServerError as error:
            sys.exit(f"error: {error}")
        except StopRequested:
            sys.exit("stopped before the service was up")


def _listening(port: int | None, mode: Mode) -> AbstractContextManager[socket.socket | None]:
    return nullcontext() if mode is Mode.SERVERS_ONLY else closing(_listen(port))


def _listen(port: int | None) -> socket.socket:
    """Listen on `port`, or on the first free one of PORTS. Raises ConfigurationError."""
    for candidate in PORTS if port is None else []:
        try:
            return listen(HOST, candidate)
        except PortInUse:
            continue
    return listen(HOST, port or PORTS[0])


def _configure_servers(options: ServerOptions) -> Servers:
    """Return the servers whose addresses neither the environment nor `.env` sets.

    Raises KafkaNotShared.
    """
    with naming_all_wrong_settings():
        settings, database, kafka = load(Settings), load(DatabaseSettings), load(KafkaSettings)
    given_url = "database_url" in database.model_fields_set
    given_kafka = "kafka_bootstrap_servers" in kafka.model_fields_set
    host = options.kafka_of or settings.dev_kafka_of
    if host is not None and (given_kafka or options.broker == "mock"):
        raise KafkaNotShared(
            "a mock broker, or one of KAFKA_BOOTSTRAP_SERVERS, excludes the Kafka of another service; "
            "leave out --kafka-of and DEV_KAFKA_OF"
        )
    data = FOLDER / "kafka" if host is None else find_kafka(host)
    me = Sharer(settings.service_name, Path.cwd().resolve(), kafka.kafka_group_id)
    return Servers(
        FOLDER,
        options.broker,
        fresh=options.fresh,
        database_url=database.database_url.get_secret_value() if given_url else None,
        kafka_bootstrap_servers=kafka.kafka_bootstrap_servers if given_kafka else None,
        shared=SharedKafka(data, me, fresh=options.fresh),
    )


@contextmanager
def _running(servers: Servers, signals: StopSignals) -> Iterator[None]:
    """Run the servers for the length of the block, and let this process and commands use them."""
    was_killed = ADDRESSES.exists()
    try:
        servers.start()
        os.environ |= {name.upper(): value for name, value in servers.settings.items()}
        with publish_addresses(servers):
            settings = load(Settings)
            logs.configure(settings.log_level, settings.log_format, APP_LOG)
            if was_killed:
                _say_killed()
            yield
    finally:
        signals.ignore()
        servers.stop()
        if (kafka := _shared(servers)) is not None and kafka.used_by:
            say(f"Kafka stays up for {_names(kafka)}")


def _say_killed() -> None:
    timeout = load(KafkaSettings).kafka_session_timeout_seconds
    say(
        "the last `app dev` here was killed: its servers were stopped, and their data is kept; "
        f"consumers may wait up to {timeout:g} s, until Kafka drops the members of that run"
    )


def _serve(
    service: Service, listener: socket.socket, servers: Servers, signals: StopSignals
) -> None:
    """Run the application in this process."""
    asyncio.run(prepare(service, *_broker(servers)))

    @asynccontextmanager
    async def started() -> AsyncIterator[None]:
        signals.ignore()  # the HTTP server handles them itself
        say_block(_start_message(servers, _port(listener), service.first_request), err=True)
        with _training(servers):
            async with _watching(servers):
                yield

    run(once_started(create_dev_app(service), started), listener, load(HttpSettings))


def _reload(child: RunChild, port: int, servers: Servers, signals: StopSignals) -> None:
    """Run the application in a child process, and replace it after each edit."""
    stopping = threading.Event()
    signals.call(stopping.set)

    def announce(first_request: FirstRequest) -> None:
        message = _start_message(servers, port, first_request)
        say_block(f"{message}  A change in app, migrations or .env is served at once.\n", err=True)

    with _training(servers):
        supervise(child, stopping, servers.find_ended, announce)
        _say_ended(servers)


def _keep_servers(service: Service, servers: Servers) -> None:
    """Prepare the servers, and keep them running for other processes until a signal."""
    asyncio.run(prepare(service, *_broker(servers)))
    say_block(_servers_message(servers), err=True)
    with _training(servers):
        try:
            while servers.find_ended() is None:
                time.sleep(_WATCH_SECONDS)
        except StopRequested:
            return
        _say_ended(servers)


def _broker(servers: Servers) -> tuple[bool, bool]:
    """Return whether `app dev` started the broker, and whether to delete the service's topics there."""
    kafka = _shared(servers)
    return servers.broker_kind != "external", kafka is not None and kafka.must_clear


def _shared(servers: Servers) -> SharedKafka | None:
    return servers.kafka if isinstance(servers.kafka, SharedKafka) else None


def _names(kafka: SharedKafka) -> str:
    return ", ".join(str(sharer) for sharer in kafka.used_by)


def _training(servers: Servers) -> AbstractContextManager[None]:
    kafka = _shared(servers)
    if kafka is None or kafka.is_joined:
        return nullcontext()
    return train_in_background(FOLDER / "training")


@asynccontextmanager
async def _watching(servers: Servers) -> AsyncIterator[None]:
    """Stop this process when one of its servers ends."""
    watch = asyncio.create_task(_watch(servers), name="development-servers")
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(servers: Servers) -> None:
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        if _say_ended(servers):
            signal.raise_signal(signal.SIGTERM)
            return


def _say_ended(servers: Servers) -> bool:
    """Print a message if a server has ended by itself; return whether one has."""
    if (ended := servers.find_ended()) is None:
        return False
    say(f"error: {ended}; stopping the rest, `uv run app dev` starts all of it again")
    return True


def _start_message(servers: Servers, port: int, first_request: FirstRequest) -> str:
    api = f"http://{HOST}:{port}"
    first = ""
    if first_request is not None:
        path, body = first_request
        first = f"""
  Try it:
    curl {api}{path} -H 'Content-Type: application/json' -d '{body}'
"""
    return f"""
  API documentation  {api}/docs
  Events             {api}/asyncapi
  Console            {api}/console
  Traces             {api}/dev/traces
  Metrics            {api}/metrics
{_addresses(servers)}
{first}
  `uv run app ...` in this folder uses these servers. Ctrl-C stops all of it.
"""


def _servers_message(servers: Servers) -> str:
    return f"""
{_addresses(servers)}

  The database is migrated and the topics exist. Nothing serves or consumes yet: run
  `uv run app api`, `uv run app worker` and the rest beside it. Ctrl-C stops the servers.
"""


def _addresses(servers: Servers) -> str:
    broker = {"kafka": "Apache Kafka", "mock": "Mock broker", "external": "Kafka"}
    shared = ""
    if (kafka := _shared(servers)) is not None and (kafka.is_guest or kafka.used_by):
        others = f", with {_names(kafka)}" if kafka.used_by else ""
        shared = f"\n  Shared Kafka       {kafka.data}{others}"
    return f"""\
  {broker[servers.broker_kind]:<17}  {servers.kafka_bootstrap_servers}{shared}
  Database           {_without_password(servers.database_url)}
  Data and logs      {FOLDER.resolve()}"""


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _without_password(url: str) -> str:
    return async_url(url).set(drivername="postgresql").render_as_string(hide_password=True)
