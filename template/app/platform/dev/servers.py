"""Both servers of the service, started side by side; what the environment names is left alone.
Where they are while `app dev` runs, other commands in the same folder are told.

Where Kafka's jars cannot be had, the wire-protocol broker inside confluent-kafka takes its place.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from app.platform import terminal
from app.platform.dev.errors import JarsUnavailable, ServerFailed, development
from app.platform.dev.folders import private_folder
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import Startable, started

ADDRESSES = Path(".dev/servers.json")

_ANSWER_SECONDS = 10.0
# What the system tells of a process moves a little when its clock is set.
_CLOCK_SECONDS = 2.0


class MockBroker(Startable):
    """A broker in this process, for as long as it is started."""

    def __init__(self) -> None:
        self._client: Any = None
        self._address = ""

    @property
    def bootstrap_servers(self) -> str:
        return self._address

    @property
    def running(self) -> bool:
        return self._client is not None

    def start(self) -> None:
        confluent_kafka = development("confluent_kafka", "confluent-kafka")
        # Level 2 keeps librdkafka from telling on stderr that a mock cluster is in use: we say so.
        self._client = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 2})
        try:
            brokers = self._client.list_topics(timeout=_ANSWER_SECONDS).brokers
        except confluent_kafka.KafkaException as error:
            self.stop()
            raise ServerFailed(f"the mock broker does not answer: {error}") from error
        self._address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers.values())

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


BrokerChoice = Literal["kafka", "mock"]
BrokerKind = Literal["kafka", "mock", "external"]


def say(line: str) -> None:
    """Tell the person at the terminal; stdout stays for logs."""
    terminal.say(line, err=True)


class Servers(Startable):
    """PostgreSQL and Kafka for as long as the context lasts.

    Steps over PostgreSQL when `database_url` is given, and over Kafka when
    `kafka_bootstrap_servers` is (by default: what the environment says). Takes the mock broker,
    and says so, where Kafka's jars cannot be had. `fresh` throws earlier data away.
    """

    def __init__(
        self,
        data: Path,
        broker: BrokerChoice = "kafka",
        *,
        fresh: bool = False,
        fsync: bool = True,
        database_url: str | None = None,
        kafka_bootstrap_servers: str | None = None,
        say: Callable[[str], None] = say,
    ) -> None:
        self._data = data
        self._broker = broker
        self._fresh = fresh
        self._fsync = fsync
        self._say = say
        self._cancelled = threading.Event()
        self._database_url = database_url or os.environ.get("DATABASE_URL", "")
        self._bootstrap = kafka_bootstrap_servers or os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
        self.postgres: PostgresServer | None = None
        self.kafka: KafkaCluster | None = None
        self.mock: MockBroker | None = None
        self.mock_reason = ""

    @property
    def database_url(self) -> str:
        return self.postgres.url if self.postgres else self._database_url

    @property
    def kafka_bootstrap_servers(self) -> str:
        if self.kafka is not None:
            return self.kafka.bootstrap_servers
        return self.mock.bootstrap_servers if self.mock else self._bootstrap

    @property
    def broker_kind(self) -> BrokerKind:
        if self.mock is not None:
            return "mock"
        return "external" if self.kafka is None else "kafka"

    def start(self) -> None:
        """Start what is needed. Raises DevelopmentServerError; then nothing is left running."""
        with ThreadPoolExecutor(2, "servers") as pool:
            starting = [pool.submit(self._start_postgres), pool.submit(self._start_broker)]
            try:
                self._wait(starting)
            except BaseException:
                self._cancelled.set()
                _settle(starting)
                self.stop()
                raise

    def ended(self) -> str | None:
        """Return which server has ended though nobody stopped it, and where its log is; None if all run."""
        if self.kafka is not None and not self.kafka.running():
            return f"Apache Kafka has ended by itself; its log is {self.kafka.log()}"
        if self.postgres is not None and not self.postgres.running:
            return f"PostgreSQL has ended by itself; its log is {self.postgres.log}"
        return None

    def stop(self) -> None:
        if self.mock is not None:
            self.mock.stop()
        with ThreadPoolExecutor(2, "servers") as pool:
            stopping = [
                pool.submit(server.stop) for server in (self.kafka, self.postgres) if server
            ]
            for future in stopping:
                future.result()

    def _wait(self, starting: list[Future[None]]) -> None:
        """Fail as soon as one of them does; the other is then cancelled."""
        done = threading.Semaphore(0)
        for future in starting:
            future.add_done_callback(lambda _: done.release())
        for _ in starting:
            done.acquire()
            for future in starting:
                if future.done():
                    future.result()

    def _start_postgres(self) -> None:
        if self._database_url:
            return
        server = PostgresServer(self._data / "postgres", fsync=self._fsync, fresh=self._fresh)
        server.start(self._cancelled.is_set)
        self.postgres = server

    def _start_broker(self) -> None:
        if self._bootstrap:
            return
        if self._broker == "mock":
            self._start_mock("asked for")
            return
        cluster = KafkaCluster(self._data / "kafka", fresh=self._fresh)
        try:
            cluster.start(cancelled=self._cancelled.is_set)
        except JarsUnavailable as error:
            self._start_mock(str(error))
            return
        self.kafka = cluster

    def _start_mock(self, reason: str) -> None:
        mock = MockBroker()
        mock.start()
        self.mock, self.mock_reason = mock, reason
        self._say(
            f"Mock broker instead of Apache Kafka ({reason}): it forgets everything at the end"
        )


def _settle(futures: list[Future[None]]) -> None:
    for future in futures:
        future.exception()


@contextmanager
def told(servers: Servers, file: Path = ADDRESSES) -> Iterator[None]:
    """Commands find `servers` for as long as the block lasts, or this process.

    Only what runs here is told: an address that was given may hold a password.
    """
    settings = {}
    if servers.postgres is not None:
        settings["database_url"] = servers.database_url
    if servers.broker_kind != "external":
        settings["kafka_bootstrap_servers"] = servers.kafka_bootstrap_servers
    process = os.getpid()
    private_folder(file.parent)  # nobody has made it, where both servers were given
    written = file.with_suffix(".new")
    written.touch(mode=0o600)  # the database's address has its password
    written.write_text(
        json.dumps({"process": process, "started": started(process), "settings": settings}) + "\n"
    )
    written.replace(file)  # nobody reads half of it
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def of_running(file: Path = ADDRESSES) -> dict[str, str]:
    """Settings that lead to the servers of the `app dev` that runs here; none if none does.

    Raises DevelopmentDependencyMissing.
    """
    try:
        written = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    since = started(written["process"])
    # A process that was killed left its file behind; its id may be somebody else's by now.
    if since is None or abs(since - written["started"]) > _CLOCK_SECONDS:
        return {}
    settings: dict[str, str] = written["settings"]
    return settings
