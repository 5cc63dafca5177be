"""A lock between processes that the system lets go of when its holder dies, however it dies."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.dev.errors import StartCancelled

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """An exclusive lock on `path`. Its holder's process id is written beside it, for messages."""

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
        """Take the lock if it is free. Closing the file, or dying, lets go of it."""
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
        """Hold the lock for the length of the block. Raises StartCancelled."""
        while not self.acquire():
            if cancelled():
                raise StartCancelled(f"gave up waiting for process {self.holder}")
            time.sleep(0.1)
        try:
            yield
        finally:
            self.release()
