"""Work in the background for the length of a block, and what wakes it up."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Set
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` as a task during the block, and cancel it at the end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class WakeUp(asyncio.Event):
    """An event that names what has to be done: numbers, or nothing if it may be anything."""

    def __init__(self) -> None:
        super().__init__()
        self._named: set[int] = set()
        self._anything = False

    def set(self) -> None:
        self._anything = True
        super().set()

    def name(self, numbers: Iterable[int]) -> None:
        """Set the event for these numbers only."""
        self._named.update(numbers)
        super().set()

    def take(self) -> Set[int] | None:
        """Clear the event, and return the named numbers; None if it may be anything."""
        named, anything = self._named, self._anything
        self.clear()
        return None if anything else named

    def clear(self) -> None:
        self._named, self._anything = set(), False
        super().clear()
