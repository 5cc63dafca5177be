"""Waiting between attempts at something that fails for now."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

# Beyond this a power may overflow a float; every maximum is reached long before.
_MAX_EXPONENT = 64


@dataclass
class Backoff:
    """Exponential back-off: delays that grow from `initial` to `maximum`, in seconds.

    Each delay is shortened by a random share of at most `jitter`, so that clients that failed
    together do not try again together.
    """

    initial: float
    maximum: float
    multiplier: float = 2.0
    jitter: float = 0.0
    chance: Callable[[], float] = random.random
    failures: int = field(default=0, init=False)

    def delay(self, attempt: int) -> float:
        """Return the delay after the failed attempt number `attempt` (the first is 1)."""
        growth = self.multiplier ** min(attempt - 1, _MAX_EXPONENT)
        return min(self.maximum, self.initial * growth) * (1 - self.jitter * self.chance())

    def next(self) -> float:
        """Count a failed attempt, and return the delay before the next one."""
        self.failures += 1
        return self.delay(self.failures)

    async def pause(self, interrupt: asyncio.Event | None = None) -> None:
        """Count a failed attempt, and wait until the next one is due or `interrupt` is set."""
        delay = self.next()
        if interrupt is None:
            await asyncio.sleep(delay)
        else:
            await wait_for_event(interrupt, delay)

    def reset(self) -> bool:
        """Start over after a success; return whether attempts had failed before it."""
        failed, self.failures = self.failures > 0, 0
        return failed


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event` for at most `seconds`; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return event.is_set()
