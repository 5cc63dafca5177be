"""One timer for all that wait equally long."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Deadline:
    """`asyncio.wait_for` with one timer for all that wait: each waits equally long, so that who
    began first is late first. A timer for each costs a tenth of a send."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Raises TimeoutError when `work` is late, and was cancelled."""
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(self._seconds, self._cancel_late)
        # To find the loop anew each time costs more than all the rest here.
        task = asyncio.current_task(self._loop)
        assert task is not None
        cancelling = task.cancelling()
        self._ends[task] = self._loop.time() + self._seconds
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._ends or task.uncancel() > cancelling:
                raise  # somebody else cancelled the task
            raise TimeoutError from None
        finally:
            self._ends.pop(task, None)

    def _cancel_late(self) -> None:
        self._timer = None
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > self._loop.time():
                self._timer = self._loop.call_at(end, self._cancel_late)
                return
            del self._ends[task]
            task.cancel()
