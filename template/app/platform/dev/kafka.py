"""An embedded Apache Kafka cluster: the real broker in KRaft mode, one node or three.

It starts in half the time from an archive of its read and linked classes (JEP 514). A broker that
recorded its own classes writes the archive when it ends, which takes seconds. So an extra broker
does it in the background, while the first run of `app dev` is idle.
"""

import base64
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.platform.dev import java
from app.platform.dev.broker import Broker
from app.platform.dev.broker_settings import SMALL, cluster_settings, security_settings
from app.platform.dev.errors import FolderInUse, PortTaken, ServerFailed
from app.platform.dev.folders import DataFolder
from app.platform.dev.java import kafka_jars
from app.platform.dev.keystore import KeyStore, SaslSsl
from app.platform.dev.process import LOOPBACK, Startable, free_port, is_free, remembered_ports

STOP_SECONDS = 20.0
_PORT_TRIES = 3
PORTS_FILE = "ports"  # those of clients first


class KafkaCluster(Startable):
    """Apache Kafka on `data`, listening on loopback. Data stays between runs.

    Brokers are numbered from 1. `ports` fixes where clients connect, one port a broker; without it
    the cluster keeps the ports it had before, or takes free ones. `settings` are broker settings
    that win over ours. `jvm_flags` replace the archive of classes. `fresh` deletes earlier data.
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
        self._folder = DataFolder("Kafka", data)
        self.data = self._folder.path
        self.security = security
        self._fixed_ports = ports
        self._settings = dict(settings or {})
        self._fresh = fresh
        self._key_store = KeyStore(self.data / "tls")
        self._jars: list[Path] = []
        self.numbers = list(range(1, brokers + 1))
        self._brokers = {n: Broker(n, self.data / f"broker-{n}", jvm_flags) for n in self.numbers}
        for broker, port in zip(self._brokers.values(), ports or [], strict=False):
            broker.port = port

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{LOOPBACK}:{broker.port}" for broker in self._brokers.values())

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
        self._claim_folder()
        try:
            self._prepare()
            self._run(cancelled)
        except BaseException:
            self._kill_all()
            self._folder.release()
            raise

    def stop(
        self,
        number: int | None = None,
        *,
        timeout: float = STOP_SECONDS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """SIGTERM: partitions are handed over and logs closed cleanly."""
        stopping = self._brokers.values() if number is None else [self._brokers[number]]
        for broker in stopping:
            broker.process.signal(signal.SIGTERM)
        for broker in stopping:
            broker.process.wait_stopped(timeout, cancelled)
        if number is None:
            self._folder.release()

    def kill(self, number: int | None = None) -> None:
        """SIGKILL one broker or all of them; `start` recovers."""
        if number is not None:
            self._brokers[number].process.kill()
            return
        self._kill_all()
        self._folder.release()

    def discard(self) -> None:
        """Stop what a killed process left behind, and delete the data."""
        self._claim_folder()
        try:
            self._fresh = True
            self._stop_leftovers()
        finally:
            self._folder.release()
        shutil.rmtree(self.data, ignore_errors=True)

    def suspend(self, number: int = 1) -> None:
        self._brokers[number].process.suspend()

    def resume(self, number: int = 1) -> None:
        self._brokers[number].process.resume()

    def _claim_folder(self) -> None:
        if any(broker.process.running for broker in self._brokers.values()):
            raise FolderInUse(f"Kafka on {self.data} is running already, in this process")
        self._folder.claim()

    def _kill_all(self) -> None:
        for broker in self._brokers.values():
            broker.process.kill()

    def _stop_leftovers(self) -> None:
        for broker in self._brokers.values():
            broker.process.stop_leftover()
            if self._fresh:
                shutil.rmtree(broker.folder, ignore_errors=True)
        self._fresh = False  # a later start of this object keeps what it wrote

    def _prepare(self) -> None:
        self._stop_leftovers()
        if self.security is not None:
            self._key_store.ensure()
        self._choose_ports()
        self._configure()
        cluster_id = _cluster_id(self.data)
        unformatted = [broker for broker in self._brokers.values() if not broker.is_formatted]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda b: b.format(self._jars, cluster_id, self.security), unformatted))

    def _run(self, cancelled: Callable[[], bool]) -> None:
        for left in reversed(range(1 if self._fixed_ports else _PORT_TRIES)):
            try:
                for broker in self._brokers.values():
                    broker.spawn(self._jars)
                for broker in self._brokers.values():
                    broker.wait_ready(cancelled)
                return
            except PortTaken:
                self._kill_all()
                if left == 0:
                    raise
                self._choose_ports()
                self._configure()

    def _start_one(self, broker: Broker, cancelled: Callable[[], bool]) -> None:
        if not self._jars:
            raise ServerFailed("start the cluster before one of its brokers")
        if broker.process.running:
            raise ServerFailed(f"{broker.process.name} is running already")
        if not is_free(broker.port):
            raise PortTaken(broker.port, broker.process.name)
        broker.spawn(self._jars)
        broker.wait_ready(cancelled)

    def _choose_ports(self) -> None:
        """Choose ports for clients, for controllers and, with security, between brokers."""
        count = len(self._brokers)
        ports = _kept_ports(self.data / PORTS_FILE, count * 3)
        if self._fixed_ports:
            for port in self._fixed_ports:
                if not is_free(port):
                    raise PortTaken(port, "Kafka")
            ports[:count] = self._fixed_ports
        for broker, port, controller, internal in zip(
            self._brokers.values(),
            ports[:count],
            ports[count : 2 * count],
            ports[2 * count :],
            strict=True,
        ):
            broker.port, broker.controller_port, broker.internal_port = port, controller, internal

    def _configure(self) -> None:
        settings = {**cluster_settings(several=len(self._brokers) >= 3), **SMALL}
        if self.security is not None:
            settings |= security_settings(self.security, self._key_store)
        settings |= self._settings
        controllers = {b.number: b.controller_port for b in self._brokers.values()}
        for broker in self._brokers.values():
            broker.configure(controllers, settings, secured=self.security is not None)


def _kept_ports(file: Path, count: int) -> list[int]:
    """Return the `count` ports in `file`, or write free ones to it if one of them is in use."""
    ports = remembered_ports(file)
    if len(ports) != count or not all(is_free(port) for port in ports):
        ports = [free_port() for _ in range(count)]
    file.write_text(" ".join(str(port) for port in ports) + "\n")
    return ports


def _cluster_id(data: Path) -> str:
    # Without the prefix one in 64 ids began with `-` and were read as an option.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, data.as_uri()).bytes
    return "k" + base64.urlsafe_b64encode(identity).decode()[1:22]
