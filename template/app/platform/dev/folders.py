"""Folders with the data of a server: closed to other users, and used by one process at a time."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.platform.dev.errors import FolderInUse, StartCancelled

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def private_folder(path: Path) -> None:
    """Create the folder `path`, or close it, so that only its owner may enter. Its parents stay as they are."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)


class FileLock:
    """An exclusive lock on `path`. A file beside it holds its owner's process id, for messages.

    The system releases the lock when its owner dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder = path.with_suffix(".pid")
        self._file: IO[bytes] | None = None

    @property
    def holder(self) -> str:
        try:
            return self._holder.read_text().strip()
        except FileNotFoundError:
            return "unknown"

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        try:
            _try_lock(file)
        except OSError:  # the lock is held: BlockingIOError, or PermissionError on Windows
            file.close()
            return False
        self._file = file
        self._holder.write_text(f"{os.getpid()}\n")
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def waited_for(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Wait for the lock and hold it for the length of the block. Raises StartCancelled."""
        while not self.acquire():
            if cancelled():
                raise StartCancelled(f"cancelled while waiting for process {self.holder}")
            time.sleep(0.1)
        try:
            yield
        finally:
            self.release()


class DataFolder:
    """A server's folder, which one process at a time may claim."""

    def __init__(self, server: str, path: Path) -> None:
        self.path = path.resolve()
        self._server = server
        self._lock = FileLock(self.path / "owner.lock")

    def claim(self) -> None:
        """Create or close the folder and take its lock. Raises FolderInUse."""
        private_folder(self.path)
        if not self._lock.acquire():
            raise FolderInUse(
                f"{self._server}'s data in {self.path} is in use by process {self._lock.holder}; "
                "stop that first"
            )

    def release(self) -> None:
        self._lock.release()
