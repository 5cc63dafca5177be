"""A timer that is shared by all tasks with the same time-out."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Deadline:
    """`asyncio.wait_for` with one timer for all tasks.

    All have the same time-out, so they expire in the order in which they began. A timer for each would
    take a tenth of the time of a send.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Await `work`. Cancels it and raises TimeoutError at the deadline."""
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(self._seconds, self._cancel_expired)
        # Passing the loop is much faster than looking it up.
        task = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        self._ends[task] = self._loop.time() + self._seconds
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._ends or task.uncancel() > cancelling:
                raise  # another party cancelled the task
            raise TimeoutError from None
        finally:
            self._ends.pop(task, None)

    def _cancel_expired(self) -> None:
        self._timer = None
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > self._loop.time():
                self._timer = self._loop.call_at(end, self._cancel_expired)
                return
            del self._ends[task]
            task.cancel()
