"""Publishing without an outbox: events go out after the transaction has committed.

If the process dies, or no broker answers, between the commit and the acknowledgement, the event is
lost. Unless the process died, the error log and `kafka_events_lost_total` show it. The outbox module
avoids such losses. If the answer to COMMIT is lost, the server is asked for the outcome
(app/platform/database/commit_outcome.py).
"""

import asyncio
from collections.abc import Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform import tracing
from app.platform.backoff import Backoff
from app.platform.database.commit_outcome import CommitOutcome, CommitTracker
from app.platform.database.errors import summary
from app.platform.database.unit_of_work import BindPublisher
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.kafka import metrics
from app.platform.kafka.codec import Message, encode_within
from app.platform.kafka.errors import BrokerUnavailable
from app.platform.kafka.producer import Outcome, Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.spans import creating

log = structlog.get_logger(__name__)

_RETRY_SECONDS = (0.1, 1.0)


class CommitOutcomeUnknown(Exception):
    """The answer to COMMIT was lost, and the server could not be asked for the outcome."""


class DirectPublisher:
    """A publisher that keeps the events of one transaction and sends them after its commit."""

    def __init__(
        self,
        producer: Producer,
        registry: EventRegistry,
        deadline: float,
        max_bytes: int,
        tracker: CommitTracker,
    ) -> None:
        self._tracker = tracker
        self._producer = producer
        self._registry = registry
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._pending: list[Message] = []

    async def publish(self, event: BaseEvent) -> None:
        """Keep `event` until the commit. Raises MessageTooLarge, so that the transaction fails."""
        with creating(event, self._registry):
            message = encode_within(self._max_bytes, event, self._registry, tracing.current())
        if not self._pending:
            self._tracker.track()
        self._pending.append(message)

    async def has_committed(self, error: BaseException) -> bool:
        if not self._tracker.is_in_doubt(error):
            return False
        outcome = CommitOutcome.UNKNOWN
        try:
            outcome = await self._tracker.outcome(self._deadline)
        finally:  # the caller may cancel it
            log.warning("answer to COMMIT lost", outcome=outcome, error=summary(error))
            if outcome is CommitOutcome.UNKNOWN:
                messages, self._pending = self._pending, []
                for message in messages:
                    _report_loss(message, CommitOutcomeUnknown("it may have committed"))
        return outcome is CommitOutcome.COMMITTED

    async def after_commit(self) -> None:
        messages, self._pending = self._pending, []
        if not messages:
            return
        try:
            outcomes = await self._send_within_deadline(messages)
        except asyncio.CancelledError:
            for message in messages:
                _report_loss(message, BrokerUnavailable("cancelled before it was acknowledged"))
            raise
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                log.info("event published", topic=message.topic, key=_text(message.key))
            else:
                _report_loss(message, outcome)

    async def _send_within_deadline(self, messages: list[Message]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline
        outcomes = await self._producer.send_all(messages)
        backoff = Backoff(*_RETRY_SECONDS)
        while loop.time() < deadline and any(o is not None and o.retriable for o in outcomes):
            await asyncio.sleep(min(backoff.next(), max(0.0, deadline - loop.time())))
            again = _indexes_to_resend(messages, outcomes)
            results = await self._producer.send_all([messages[i] for i in again])
            for index, result in zip(again, results, strict=True):
                outcomes[index] = result
        return outcomes


def _indexes_to_resend(messages: Sequence[Message], outcomes: Sequence[Outcome]) -> list[int]:
    # Later messages of a failed message's key are sent again, too, so that consumers first see each in
    # order. The inbox skips the duplicates.
    repeated: list[int] = []
    keys: set[tuple[str, bytes | None]] = set()
    for index, (message, outcome) in enumerate(zip(messages, outcomes, strict=True)):
        key = (message.topic, message.key)
        if key in keys or (outcome is not None and outcome.retriable):
            keys.add(key)
            repeated.append(index)
    return repeated


def _report_loss(message: Message, outcome: BaseException) -> None:
    metrics.events_lost.labels(message.topic).inc()
    log.error(
        "event not published",
        topic=message.topic,
        key=_text(message.key),
        value=_text(message.value),
        error=f"{type(outcome).__name__}: {outcome}",
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def bind(
    settings: KafkaSettings, registry: EventRegistry, producer: Producer, _published: asyncio.Event
) -> BindPublisher:
    """Return the factory of publishers after commit, one for each transaction."""
    for topic in registry.owned_topics():
        metrics.events_lost.labels(topic)  # `increase` misses the first event of a new series

    def bind_session(session: AsyncSession) -> DirectPublisher:
        return DirectPublisher(
            producer,
            registry,
            settings.kafka_send_timeout_seconds,
            settings.kafka_max_message_bytes,
            CommitTracker(session),
        )

    return bind_session
