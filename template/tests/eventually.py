"""Waiting for what happens asynchronously."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    probe: Callable[[], Awaitable[T]], until: Callable[[T], bool] = bool, seconds: float = 15.0
) -> T:
    """Call `probe` until its answer satisfies `until`; return that answer.

    Raises AssertionError with the last answer when that takes longer than `seconds`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        answer = await probe()
        if until(answer):
            return answer
        assert loop.time() < deadline, f"not within {seconds:g} s; the last answer was {answer!r}"
        await asyncio.sleep(0.05)
