"""The state of a running consumer, as its parts and the health checks see it."""

import asyncio
import time

import structlog

from app.kafka import metrics

log = structlog.get_logger(__name__)


class Draining(Exception):
    """The consumer is losing its partitions or stopping: what has not begun is left undone."""


class ConsumerStatus:
    """What a consumer is doing, and whether it makes progress."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.draining = asyncio.Event()
        self.assigned = False
        self.trouble: str | None = None
        self.overload: str | None = None
        self._last_progress = time.monotonic()

    def progressed(self) -> None:
        self._last_progress = time.monotonic()

    @property
    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._last_progress

    def check_draining(self) -> None:
        """Raises Draining when nothing new should begin."""
        if self.draining.is_set():
            raise Draining

    async def wait(self, seconds: float) -> None:
        """Wait for `seconds`. Raises Draining as soon as the consumer drains."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.progressed()
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self.draining.wait()
            except TimeoutError:
                continue
            raise Draining
        self.check_draining()

    def blocked(self, reason: str) -> None:
        """The consumer takes nothing, because of `reason`, until `unblocked`."""
        if self.trouble is None:
            log.warning("consumer waits", consumer=self.consumer, reason=reason)
        self.trouble = reason
        metrics.paused.labels(self.consumer, "infrastructure").set(1)
        self.progressed()

    def unblocked(self) -> None:
        if self.trouble is not None:
            log.info("consumer goes on", consumer=self.consumer, after=self.trouble)
        self.trouble = None
        metrics.paused.labels(self.consumer, "infrastructure").set(0)
        self.progressed()
