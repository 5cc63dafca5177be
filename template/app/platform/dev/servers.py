"""Both servers of the service, started side by side, and the file with their addresses.

A server that the environment names is not started. Commands in the same folder read the file to find
the servers of a running `app dev`. Without Kafka's jars, the wire-protocol broker inside
confluent-kafka replaces Kafka.
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
from app.platform.dev.errors import JarsUnavailable, ServerFailed, import_development
from app.platform.dev.folders import private_folder
from app.platform.dev.kafka import KafkaCluster
from app.platform.dev.postgres import PostgresServer
from app.platform.dev.process import Startable, start_time

FOLDER = Path(".dev")
ADDRESSES = FOLDER / "servers.json"
APP_LOG = FOLDER / "app.log"

_ANSWER_SECONDS = 10.0
# The start time of a process shifts a little when the clock is set.
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
        confluent_kafka = import_development("confluent_kafka", "confluent-kafka")
        # Level 2 silences librdkafka's own warning about the mock cluster: we print one.
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
    """Print a line to standard error."""
    terminal.say(line, err=True)


class Servers(Startable):
    """PostgreSQL and Kafka for the length of a block.

    PostgreSQL is not started if `database_url` is given, nor Kafka if `kafka_bootstrap_servers` is;
    both default to the environment. Without Kafka's jars the mock broker is started, with a
    message. `fresh` deletes earlier data. `fsync=False` is for tests, whose data may be lost.
    `shared` takes the place of a Kafka of its own.
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
        shared: KafkaCluster | None = None,
        say: Callable[[str], None] = say,
    ) -> None:
        self._data = data
        self._broker = broker
        self._fresh = fresh
        self._fsync = fsync
        self._shared = shared
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

    @property
    def settings(self) -> dict[str, str]:
        """The settings that address the embedded servers: a given address may hold a password."""
        settings = {}
        if self.postgres is not None:
            settings["database_url"] = self.database_url
        if self.broker_kind != "external":
            settings["kafka_bootstrap_servers"] = self.kafka_bootstrap_servers
        return settings

    def start(self) -> None:
        """Start the servers. Raises DevelopmentServerError, and then stops those already started."""
        with ThreadPoolExecutor(2, "servers") as pool:
            starting = [pool.submit(self._start_postgres), pool.submit(self._start_broker)]
            try:
                self._wait(starting)
            except BaseException:
                self._cancelled.set()
                _wait_all(starting)
                self.stop()
                raise

    def find_ended(self) -> str | None:
        """Return a message about a server that has ended by itself; None if all are running."""
        if self.kafka is not None and not self.kafka.running():
            return f"Apache Kafka has ended by itself; its log is {self.kafka.log()}"
        if self.postgres is not None and not self.postgres.running:
            return f"PostgreSQL has ended by itself; its log is {self.postgres.log}"
        return None

    def stop(self) -> None:
        if self.mock is not None:
            self.mock.stop()
        stops = [self.postgres.stop] if self.postgres else []
        if self.kafka is not None:  # which takes seconds to close hundreds of partitions
            stops.append(self.kafka.stop if self._fsync else self.kafka.kill)
        with ThreadPoolExecutor(2, "servers") as pool:
            for future in [pool.submit(stop) for stop in stops]:
                future.result()

    def _wait(self, starting: list[Future[None]]) -> None:
        """Raise the first error of any of them as soon as it happens."""
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
        cluster = self._shared or KafkaCluster(self._data / "kafka", fresh=self._fresh)
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
            f"Mock broker instead of Apache Kafka ({reason}): it forgets everything when it stops"
        )


def _wait_all(futures: list[Future[None]]) -> None:
    for future in futures:
        future.exception()


@contextmanager
def publish_addresses(servers: Servers, file: Path = ADDRESSES) -> Iterator[None]:
    """Write the addresses of embedded `servers` to `file`, for the length of the block."""
    process = os.getpid()
    private_folder(file.parent)  # it does not exist yet if both servers were given
    written = file.with_suffix(".new")
    written.touch(mode=0o600)  # the database's address contains its password
    kafka = servers.kafka
    addresses = {
        "process": process,
        "started": start_time(process),
        "settings": servers.settings,
        "kafka": None if kafka is None else str(kafka.data),
    }
    written.write_text(json.dumps(addresses) + "\n")
    written.replace(file)  # so that nobody reads half of it
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def running_addresses(file: Path = ADDRESSES) -> dict[str, str]:
    """Return the settings that address the servers of a running `app dev`; none if none runs here.

    Raises DevelopmentDependencyMissing.
    """
    running = running_servers(file)
    settings: dict[str, str] = running["settings"] if running else {}
    return settings


def running_servers(file: Path) -> dict[str, Any] | None:
    """Return the contents of `file` if the `app dev` that wrote it runs."""
    try:
        written: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # a machine that loses its power may leave it empty
        return None
    since = start_time(written["process"])
    # A killed process leaves its file behind; its id may belong to another process by now.
    if since is None or abs(since - written["started"]) > _CLOCK_SECONDS:
        return None
    return written
