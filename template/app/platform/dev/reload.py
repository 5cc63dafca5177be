"""`app dev --reload`: the application in a child process, which is replaced after an edit.

The supervisor holds the servers and the listening socket. A new child loads the code while the one
before it still serves; a child that cannot be loaded changes nothing. Then the old child drains, and
the new one starts. Requests in between wait in the socket's queue.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from app.platform.dev.application import FIRST_START, LOADED, READY, START
from app.platform.dev.errors import import_development
from app.platform.dev.servers import say

RunChild = Callable[[Connection], None]
FirstRequest = tuple[str, str] | None

# Importing these takes most of the time of a start. They do not change while `app dev` runs, so the
# process from which the children are forked imports them once.
PRELOADED = [
    *("aiokafka.admin", "alembic.command", "asyncpg", "email_validator", "fastapi", "h11"),
    *("prometheus_client", "pydantic_settings", "sqlalchemy.dialects.postgresql.asyncpg"),
    *("sqlalchemy.ext.asyncio", "structlog", "typer", "uvicorn.protocols.http.h11_impl", "uvloop"),
]
WATCHED = ["app", "migrations"]
ENV_FILE = Path(".env")

_POLL_MS = 50
_DEBOUNCE_MS = 400
_STOP_SECONDS = 30.0


def supervise(
    run_child: RunChild,
    stopping: threading.Event,
    find_ended: Callable[[], str | None],
    announce: Callable[[FirstRequest], None],
) -> None:
    """Run the application until `stopping` is set or a server has ended.

    `announce` is called once, with the service's first request, when the application serves.
    """
    watchfiles = import_development("watchfiles", "watchfiles")
    with closing(Supervisor(run_child, announce)) as supervisor:
        supervisor.load(())
        env = _stamp(ENV_FILE)
        for changes in watchfiles.watch(
            *filter(os.path.isdir, WATCHED),
            watch_filter=watchfiles.PythonFilter(),
            debounce=_DEBOUNCE_MS,
            step=_POLL_MS,
            rust_timeout=_POLL_MS,
            yield_on_timeout=True,
            stop_event=stopping,
            raise_interrupt=False,
        ):
            if find_ended() is not None:
                return
            paths = {os.path.relpath(path) for _, path in changes}
            if (now := _stamp(ENV_FILE)) != env:
                env = now
                paths.add(str(ENV_FILE))
            if paths:
                supervisor.load(sorted(paths))
            supervisor.step()


class Supervisor:
    """The child that serves, and the one that is about to replace it."""

    def __init__(self, run_child: RunChild, announce: Callable[[FirstRequest], None]) -> None:
        self._context = _context()
        self._run_child = run_child
        self._announce: Callable[[FirstRequest], None] | None = announce
        self._serving: _Child | None = None
        self._loading: _Child | None = None
        self._changed_at = time.monotonic()

    def load(self, changed: Iterable[str]) -> None:
        """Load the application anew, because the files `changed` were saved."""
        if names := ", ".join(changed):
            say(f"reloading after a change of {names}")
        self._changed_at = time.monotonic()
        if self._loading is not None:
            self._loading.kill()
        self._loading = _Child(self._context, self._run_child)

    def step(self) -> None:
        """React to what the children have reported."""
        if (loading := self._loading) is not None:
            if loading.received() == LOADED:
                if self._serving is not None:
                    self._serving.stop()
                self._serving, self._loading = loading, None
                loading.start(FIRST_START if self._announce is not None else START)
            elif not loading.running:
                loading.kill()
                self._loading = None
                still = "; the version before still serves" if self._serving is not None else ""
                say(f"the application cannot be loaded{still}; save a file to try again")
        if (serving := self._serving) is not None:
            if serving.received() == READY:
                self._report(serving.first_request)
            elif not serving.running:
                serving.kill()
                self._serving = None
                say(f"the application ended ({serving.exit_code}); save a file to start it again")

    def close(self) -> None:
        for child in (self._loading, self._serving):
            if child is not None:
                child.stop()

    def _report(self, first_request: FirstRequest) -> None:
        if self._announce is not None:
            self._announce(first_request)
            self._announce = None
        else:
            say(f"reloaded in {time.monotonic() - self._changed_at:.1f} s")


class _Child:
    """A process of the application."""

    def __init__(self, context: Any, run_child: RunChild) -> None:
        self.first_request: FirstRequest = None
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_child, args=(theirs,), name="application")
        self._process.start()
        theirs.close()

    @property
    def running(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def exit_code(self) -> str:
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def received(self) -> str | None:
        """Return the next message of the child, if there is one."""
        try:
            if not self._connection.poll():
                return None
            message, self.first_request = self._connection.recv()
        except (EOFError, ConnectionError):
            return None
        return str(message)

    def start(self, start: str) -> None:
        """Let the loaded application prepare the servers and serve."""
        try:
            self._connection.send(start)
        except ConnectionError:  # it has ended meanwhile, which `running` tells
            return

    def stop(self) -> None:
        """Let the application drain; kill it if that takes too long."""
        self._process.terminate()
        self._process.join(_STOP_SECONDS)
        if self.running:
            say(f"the application did not stop within {_STOP_SECONDS:g} s, and was killed")
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _context() -> BaseContext:
    if sys.platform != "linux":  # elsewhere forking is not safe after imports
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
