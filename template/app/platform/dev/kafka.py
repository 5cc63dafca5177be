"""An embedded Apache Kafka cluster: the real broker in KRaft mode, one node or three.

It starts in half the time from an archive of its read and linked classes (JEP 514). A broker that
watched itself writes the archive when it ends, and that takes seconds; so a broker of its own does
it, in the background, while the first run of `app dev` has nothing to do.
"""

import base64
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.platform.dev import java
from app.platform.dev.broker_settings import SMALL, cluster_settings, security_settings
from app.platform.dev.errors import FolderInUse, PortTaken, ServerFailed
from app.platform.dev.java import kafka_jars
from app.platform.dev.keystore import KeyStore, SaslSsl
from app.platform.dev.process import (
    LOOPBACK,
    FileLock,
    ServerProcess,
    Startable,
    clean_environment,
    free_port,
    is_free,
    private_folder,
)

# Everything on stdout, which is the broker's server.log: without a configuration a broker that fails
# says nothing. Left out are hundreds of lines of settings at each start.
_LOGGING = """\
status = error
appender.stdout.type = Console
appender.stdout.name = stdout
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n%throwable
rootLogger.level = info
rootLogger.appenderRef.stdout.ref = stdout
logger.settings.name = org.apache.kafka.common.config.AbstractConfig
logger.settings.level = warn
"""


_START_SECONDS = 90.0
_STOP_SECONDS = 20.0
_PORT_TRIES = 3
_READY = b"Kafka Server started"
_ADDRESS_IN_USE = b"Address already in use"


class KafkaCluster(Startable):
    """Apache Kafka on `data`, listening on loopback. Data stays between runs.

    Brokers are numbered from 1. `ports` fixes where clients connect, one port a broker; without it
    the cluster keeps the ports it had before, or takes free ones. `settings` are broker settings
    that win over ours, `jvm_flags` take the place of the archive of classes; `fresh` throws earlier data away.
    """

    def __init__(
        self,
        data: Path,
        brokers: int = 1,
        security: SaslSsl | None = None,
        *,
        ports: Sequence[int] | None = None,
        settings: Mapping[str, str] | None = None,
        jvm_flags: Sequence[str] = (),
        fresh: bool = False,
    ) -> None:
        if ports is not None and len(ports) != brokers:
            raise ValueError(f"{brokers} brokers need {brokers} ports, not {len(ports)}")
        self.data = data.resolve()
        self.security = security
        self._ports = list(ports or [])
        self._fixed_ports = ports is not None
        self._settings = dict(settings or {})
        self._jvm_flags = list(jvm_flags)
        self._fresh = fresh
        self._lock = FileLock(self.data / "owner.lock")
        self._key_store = KeyStore(self.data / "tls")
        self._jars: list[Path] = []
        self._brokers = {n: _Broker(n, self.data / f"broker-{n}") for n in range(1, brokers + 1)}

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{LOOPBACK}:{port}" for port in self._ports)

    @property
    def numbers(self) -> list[int]:
        return list(self._brokers)

    @property
    def ca_file(self) -> Path:
        """The certificate that clients of a `SaslSsl` cluster trust, as PEM."""
        return self._key_store.ca_file

    def running(self, number: int = 1) -> bool:
        return self._brokers[number].process.running

    def pid(self, number: int = 1) -> int:
        return self._brokers[number].process.pid

    def log(self, number: int = 1) -> Path:
        return self._brokers[number].process.log

    def start(
        self, number: int | None = None, *, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Start the cluster, or the one broker `number` of it, and wait until it serves.

        Raises JarsUnavailable, PortTaken, FolderInUse, ServerFailed or
        DevelopmentDependencyMissing.
        """
        if number is not None:
            self._start_one(self._brokers[number], cancelled)
            return
        java.java_home()
        self._jars = kafka_jars(cancelled=cancelled)
        self._own_folder()
        try:
            self._prepare()
            self._run(cancelled)
        except BaseException:
            self._kill_all()
            self._lock.release()
            raise

    def stop(
        self,
        number: int | None = None,
        *,
        timeout: float = _STOP_SECONDS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """SIGTERM: partitions are handed over and logs closed cleanly."""
        stopping = self._brokers.values() if number is None else [self._brokers[number]]
        for broker in stopping:
            broker.process.signal(signal.SIGTERM)
        for broker in stopping:
            broker.process.wait_stopped(timeout, cancelled)
        if number is None:
            self._lock.release()

    def kill(self, number: int | None = None) -> None:
        """SIGKILL one broker or all of them; `start` recovers."""
        if number is not None:
            self._brokers[number].process.kill()
            return
        self._kill_all()
        self._lock.release()

    def discard(self) -> None:
        """Stop what a killed process left behind, and throw the data away."""
        self._own_folder()
        try:
            self._fresh = True
            self._mend()
        finally:
            self._lock.release()
        shutil.rmtree(self.data, ignore_errors=True)

    def suspend(self, number: int = 1) -> None:
        self._brokers[number].process.suspend()

    def resume(self, number: int = 1) -> None:
        self._brokers[number].process.resume()

    def _own_folder(self) -> None:
        if any(broker.process.running for broker in self._brokers.values()):
            raise FolderInUse(f"Kafka on {self.data} is running already, in this process")
        private_folder(self.data)
        if not self._lock.acquire():
            raise FolderInUse(
                f"Kafka's data in {self.data} is in use by process {self._lock.holder}; "
                "stop that first"
            )

    def _kill_all(self) -> None:
        for broker in self._brokers.values():
            broker.process.kill()

    def _mend(self) -> None:
        for broker in self._brokers.values():
            broker.process.stop_leftover()
            if self._fresh:
                shutil.rmtree(broker.folder, ignore_errors=True)
        self._fresh = False  # a later start of this object keeps what it wrote

    def _prepare(self) -> None:
        self._mend()
        if self.security is not None:
            self._key_store.ensure()
        self._choose_ports()
        self._write_settings()
        unformatted = [broker for broker in self._brokers.values() if not broker.is_formatted]
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._format, unformatted))

    def _run(self, cancelled: Callable[[], bool]) -> None:
        for left in reversed(range(1 if self._fixed_ports else _PORT_TRIES)):
            try:
                self._spawn_all(cancelled)
                return
            except PortTaken:
                self._kill_all()
                if left == 0:
                    raise
                self._choose_ports()
                self._write_settings()

    def _spawn_all(self, cancelled: Callable[[], bool]) -> None:
        for broker in self._brokers.values():
            self._spawn(broker)
        for broker in self._brokers.values():
            self._wait(broker, cancelled)

    def _start_one(self, broker: "_Broker", cancelled: Callable[[], bool]) -> None:
        if not self._jars:
            raise ServerFailed("start the cluster before one of its brokers")
        if broker.process.running:
            raise ServerFailed(f"{broker.process.name} is running already")
        port = self._ports[broker.number - 1]
        if not is_free(port):
            raise PortTaken(port, broker.process.name)
        self._spawn(broker)
        self._wait(broker, cancelled)

    def _spawn(self, broker: "_Broker") -> None:
        command = self._java(broker, self._jvm_flags, "kafka.Kafka", str(broker.settings_file))
        broker.process.spawn(command, clean_environment())

    def _wait(self, broker: "_Broker", cancelled: Callable[[], bool]) -> None:
        process = broker.process
        try:
            process.wait_ready(lambda: process.log_contains(_READY), _START_SECONDS, cancelled)
        except ServerFailed:
            if process.log_contains(_ADDRESS_IN_USE):
                raise PortTaken(self._ports[broker.number - 1], process.name) from None
            raise

    def _choose_ports(self) -> None:
        """Ports for clients, controllers and, with security, between brokers."""
        if self._fixed_ports:
            for port in self._ports:
                if not is_free(port):
                    raise PortTaken(port, "Kafka")
        remembered = self.data / "ports"
        last = [int(word) for word in remembered.read_text().split()] if remembered.exists() else []
        count = len(self._brokers) * 3
        if len(last) != count or not all(is_free(port) for port in last):
            last = [free_port() for _ in range(count)]
        if not self._fixed_ports:
            self._ports = last[: len(self._brokers)]
        for number, broker in self._brokers.items():
            broker.controller_port = last[len(self._brokers) + number - 1]
            broker.internal_port = last[2 * len(self._brokers) + number - 1]
        remembered.write_text(" ".join(str(port) for port in last) + "\n")

    def _format(self, broker: "_Broker") -> None:
        shutil.rmtree(broker.storage, ignore_errors=True)  # half formatted by a killed process
        arguments = ["format", "--cluster-id", self._cluster_id()]
        arguments += ["--config", str(broker.settings_file)]
        if self.security is not None:
            user = f"name={self.security.username},password={self.security.password}"
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"]:
                arguments += ["--add-scram", f"{mechanism}=[{user}]"]
        java.run(
            self._java(broker, [], "kafka.tools.StorageTool", *arguments),
            "formatting Kafka's storage",
        )
        broker.formatted_mark.touch()

    def _cluster_id(self) -> str:
        # Without the prefix one in 64 ids began with `-` and were read as an option.
        identity = uuid.uuid5(uuid.NAMESPACE_URL, self.data.as_uri()).bytes
        return "k" + base64.urlsafe_b64encode(identity).decode()[1:22]

    def _java(
        self, broker: "_Broker", flags: Sequence[str], main: str, *arguments: str
    ) -> list[str]:
        logging = broker.folder / "log4j2.properties"
        logging.write_text(_LOGGING)
        return [
            java.java(),
            *java.JVM_FLAGS,
            *(flags or self._archive_flags()),
            f"-Dlog4j2.configurationFile={logging}",
            f"-Dkafka.logs.dir={broker.folder}",
            f"-Djava.io.tmpdir={broker.folder}",
            f"-XX:ErrorFile={broker.folder / 'jvm-error.log'}",
            "-cp",
            java.class_path(self._jars),
            main,
            *arguments,
        ]

    def _archive_flags(self) -> list[str]:
        archive = java.archive(self._jars)
        # Java warns of each small part of an archive that it cannot use; it does without.
        return [f"-XX:AOTCache={archive}", "-Xlog:aot*=error"] if archive.exists() else []

    def _write_settings(self) -> None:
        secured = {}
        if self.security is not None:
            secured = security_settings(self.security, self._key_store)
        for broker in self._brokers.values():
            broker.folder.mkdir(parents=True, exist_ok=True)
            settings = {
                **self._node_settings(broker),
                **cluster_settings(several=len(self._brokers) >= 3),
                **SMALL,
                **secured,
                **self._settings,
            }
            # A properties file: a backslash (Windows paths) would start an escape.
            lines = [f"{name}={value}".replace("\\", "\\\\") for name, value in settings.items()]
            broker.settings_file.touch(mode=0o600)
            broker.settings_file.write_text("\n".join(lines) + "\n")

    def _node_settings(self, broker: "_Broker") -> dict[str, str]:
        listeners = {
            "CLIENT": self._ports[broker.number - 1],
            "CONTROLLER": broker.controller_port,
        }
        if self.security is not None:
            listeners["INTERNAL"] = broker.internal_port
        voters = (f"{b.number}@{LOOPBACK}:{b.controller_port}" for b in self._brokers.values())
        return {
            "process.roles": "broker,controller",
            "node.id": str(broker.number),
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLIENT" if self.security is None else "INTERNAL",
            "listeners": ",".join(f"{n}://{LOOPBACK}:{port}" for n, port in listeners.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{'SASL_SSL' if self.security and name == 'CLIENT' else 'PLAINTEXT'}"
                for name in listeners
            ),
            "log.dirs": str(broker.storage),
        }


class _Broker:
    """One node's files and process."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.settings_file = folder / "server.properties"
        self.storage = folder / "storage"
        self.formatted_mark = folder / "formatted"
        self.controller_port = 0
        self.internal_port = 0
        self.process = ServerProcess(f"Kafka broker {number}", folder, str(self.settings_file))

    @property
    def is_formatted(self) -> bool:
        return self.formatted_mark.exists()
