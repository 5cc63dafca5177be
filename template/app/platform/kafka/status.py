"""The state of a consumer: whether it is assigned, blocked, draining, and when it made progress."""

import asyncio
import time
from enum import Enum

import structlog

from app.platform.kafka.metrics import paused

log = structlog.get_logger(__name__)


class Draining(Exception):
    """The consumer is stopping or losing its partitions: work that has not begun is left undone."""


class BlockSource(Enum):
    """The party that found a consumer blocked. Each lifts only its own block."""

    PROCESSING = "the database, or Kafka where the consumer has to send or commit"
    BROKER_CHECK = "the periodic question whether Kafka answers"


class ConsumerStatus:
    """The state of one consumer, for its own tasks and for health checks."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.draining = asyncio.Event()
        self.assigned = False
        self.overload: str | None = None
        self.missing_topics: str | None = None
        self._block_reasons: dict[BlockSource, str] = {}
        self._last_progress = time.monotonic()

    def set_missing_topics(self, reason: str | None) -> None:
        """Record that topics are missing, with the message that names them; None: none is."""
        if reason is not None and reason != self.missing_topics:
            log.warning("topics missing", consumer=self.consumer, reason=reason)
        self.missing_topics = reason

    def record_progress(self) -> None:
        self._last_progress = time.monotonic()

    @property
    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._last_progress

    def check_draining(self) -> None:
        """Raise Draining if no new work should begin."""
        if self.draining.is_set():
            raise Draining

    async def wait(self, seconds: float) -> None:
        """Wait for `seconds`. Raises Draining as soon as the consumer drains."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.record_progress()
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self.draining.wait()
            except TimeoutError:
                continue
            raise Draining
        self.check_draining()

    @property
    def block_reason(self) -> str | None:
        """The reason why the consumer takes no messages; None while it takes them."""
        return next(iter(self._block_reasons.values()), None)

    def block(self, reason: str, source: BlockSource = BlockSource.PROCESSING) -> None:
        """Record that the consumer takes no messages, for `reason`, until `unblock`."""
        if source not in self._block_reasons:
            log.warning("consumer blocked", consumer=self.consumer, reason=reason)
        self._block_reasons[source] = reason
        paused.labels(self.consumer, "infrastructure").set(1)
        self._record_waiting(source)

    def unblock(self, source: BlockSource = BlockSource.PROCESSING) -> None:
        reason = self._block_reasons.pop(source, None)
        if reason is not None:
            log.info("consumer unblocked", consumer=self.consumer, reason=reason)
        if not self._block_reasons:
            paused.labels(self.consumer, "infrastructure").set(0)
        self._record_waiting(source)

    def _record_waiting(self, source: BlockSource) -> None:
        # The broker check runs beside the processing, and proves nothing about a handler that hangs.
        if source is BlockSource.PROCESSING:
            self.record_progress()
