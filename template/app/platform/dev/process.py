"""Servers as child processes: started, watched, stopped, and cleaned up after a crash; loopback ports."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.platform.dev.errors import ServerFailed, StartCancelled, import_development

LOOPBACK = "127.0.0.1"

# Below every system's ephemeral range: a client that keeps connecting to a dead ephemeral port
# can end up connected to itself, and then the restarted server cannot have its port back.
_LOWEST, _HIGHEST = 20_000, 32_000

_issued: set[int] = set()
_issued_lock = threading.Lock()


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as servers do: connections that linger are no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a port that nobody listens on, and that this process has not been given before."""
    with _issued_lock:
        while True:
            # `random` is seeded by test runners, alike in sessions that run side by side.
            port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
            if port not in _issued and is_free(port):
                _issued.add(port)
                return port


def remembered_ports(file: Path) -> list[int]:
    """Return the ports in `file`; none if there is no file, or if it cannot be read as ports."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (FileNotFoundError, ValueError):
        return []


_POLL_SECONDS = 0.02
_KILL_SECONDS = 10.0


class Startable(ABC):
    """A server that runs for the length of a `with` block."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class ServerProcess:
    """A server's process, log and process id file, all in `folder`.

    The child has a session of its own, so that Ctrl-C in the terminal reaches this process only,
    which then stops the server. `mark` is an argument that no other server's command line has (the
    path of its data or configuration). It tells a left-over server from another process that got
    the same id.
    """

    def __init__(self, name: str, folder: Path, mark: str, *, user: str | None = None) -> None:
        self.name = name
        self.log = folder / "server.log"
        self._pid_file = folder / "server.pid"
        self._mark = mark
        self._user = user
        self._child: subprocess.Popen[bytes] | _Adopted | None = None
        self._suspended: list[Any] = []

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise ServerFailed(f"{self.name} was not started")
        return self._child.pid

    def spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        """Start the server, in the working directory `folder`."""
        self._keep_last_log()
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        if self._user is not None:
            options |= run_as(self._user)
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                cwd=folder,
                **options,
            )
        self._pid_file.write_text(f"{self._child.pid}\n")

    def wait_ready(
        self,
        ready: Callable[[], bool],
        timeout: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until `ready`. Raises ServerFailed, with the tail of the log, or StartCancelled."""
        deadline = time.monotonic() + timeout
        while not ready():
            if cancelled():
                raise StartCancelled(f"the start of {self.name} was cancelled")
            if not self.running:
                raise ServerFailed(f"{self.name} ended at its start.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self.name} was not ready within {timeout:g} s.\n{self.log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Ask the server to stop. Call `wait_stopped` afterwards."""
        self.resume()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def wait_stopped(self, timeout: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until the server has stopped; kill it after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline and not cancelled():
            time.sleep(_POLL_SECONDS)
        if self.running:
            self.kill()
        self._child = None
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL the server and its children, and wait until they are gone."""
        self._suspended = []
        if self._child is None:
            return
        tree = _process_tree(self._child.pid)
        for process in tree:
            _ignore_gone(process.kill)
        self._child.wait()
        _wait_ended(tree, _KILL_SECONDS)
        self._child = None
        self._pid_file.unlink(missing_ok=True)

    def adopt(self) -> bool:
        """Take over the running server that another process started. Return whether there is one."""
        pid = self._recorded_pid()
        found = None if pid is None else self._find_own(pid)
        self._child = None if found is None else _Adopted(found)
        return self.running

    def leave(self) -> None:
        """Leave the server running, for others to adopt."""
        if isinstance(self._child, subprocess.Popen):
            self._child.returncode = 0  # without it, Popen warns of a child that nobody waits for
        self._child = None

    def suspend(self) -> None:
        """Suspend the server and its children: connections stay open, but nothing answers."""
        self._suspended = _process_tree(self.pid)
        for process in self._suspended:
            _ignore_gone(process.suspend)

    def resume(self) -> None:
        for process in reversed(self._suspended):
            _ignore_gone(process.resume)
        self._suspended = []

    def stop_leftover(self, pid: int | None = None, timeout: float = 20.0) -> bool:
        """Stop the server that a killed process left behind. Return whether there was one.

        `pid` is for servers that write a process id file of their own.
        """
        pid = self._recorded_pid() if pid is None else pid
        leftover = None if pid is None else self._find_own(pid)
        if leftover is None:
            self._pid_file.unlink(missing_ok=True)
            return False
        tree = _process_tree(leftover.pid)
        for process in tree:  # it may have been left suspended
            _ignore_gone(process.resume)
        _ignore_gone(leftover.terminate)
        for process in _wait_ended(tree, timeout):
            _ignore_gone(process.kill)
        _wait_ended(tree, _KILL_SECONDS)
        self._pid_file.unlink(missing_ok=True)
        return True

    def is_foreign(self, pid: int) -> bool:
        """Return whether the id `pid` is that of a living process other than this server."""
        return bool(_psutil().pid_exists(pid)) and self._find_own(pid) is None

    def log_contains(self, text: bytes) -> bool:
        return self.log.exists() and text in self.log.read_bytes()

    def log_tail(self, lines: int = 15) -> str:
        if not self.log.exists():
            return f"(it wrote no log to {self.log})"
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in tail)])

    def _keep_last_log(self) -> None:
        # The last run's log tells why it ended.
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))

    def _recorded_pid(self) -> int | None:
        try:
            return int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _find_own(self, pid: int) -> Any | None:
        psutil = _psutil()
        try:
            process = psutil.Process(pid)
            ours = any(self._mark in argument for argument in process.cmdline())
        except psutil.Error:  # gone, a zombie, or another user's: not this server
            return None
        return process if ours else None


class _Adopted:
    """A server that another process started, with what is used of Popen."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return None if _is_alive(self._process) else 0

    def send_signal(self, number: signal.Signals) -> None:
        _ignore_gone(lambda: self._process.send_signal(number))

    def wait(self) -> None:
        _wait_ended([self._process], _KILL_SECONDS)


def run_as(user: str) -> dict[str, Any]:
    """Return the options of `subprocess` that run a child as the system user `user`."""
    import pwd

    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that change how a server starts."""
    foreign = {"CLASSPATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and not name.startswith("PG")
    }


def _process_tree(pid: int) -> list[Any]:
    psutil = _psutil()
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _wait_ended(processes: list[Any], timeout: float) -> list[Any]:
    """Wait up to `timeout` seconds for processes to end; return those that have not."""
    deadline = time.monotonic() + timeout
    while (alive := [p for p in processes if _is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return alive


def _is_alive(process: Any) -> bool:
    psutil = _psutil()
    try:
        # An orphan stays a zombie for ever in a container whose first process does not reap.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start_time(pid: int) -> float | None:
    """Return the start time of the running process `pid` (Unix time), or None if there is none."""
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        return float(process.create_time()) if _is_alive(process) else None
    except psutil.NoSuchProcess:
        return None


def _ignore_gone(action: Callable[[], object]) -> None:
    psutil = _psutil()
    try:
        action()
    except psutil.NoSuchProcess:  # it has ended meanwhile, as intended
        return


def _psutil() -> Any:
    return import_development("psutil", "psutil")
