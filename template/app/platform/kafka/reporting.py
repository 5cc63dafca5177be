"""The fate of messages, in logs and metrics."""

from collections.abc import Sequence
from itertools import groupby

import structlog
from aiokafka import ConsumerRecord

from app.platform.kafka import metrics
from app.platform.kafka.codec import CE_ID, CORRELATION_ID, header
from app.platform.kafka.delivery import Delivery
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription, describe

log = structlog.get_logger(__name__)

# Up to so many events a transaction get a log line each; more would cost more than the work.
STORY_LENGTH = 10


class Reporter:
    """Logs and counts what becomes of the messages of one subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._name = subscription.name

    def is_permanent(self, error: Exception) -> bool:
        """Whether the message would fail again, however often it is tried."""
        return isinstance(error, (PermanentError, *self._subscription.retry.permanent))

    def failed(self, record: ConsumerRecord, error: Exception, kind: str) -> None:
        metrics.messages_failed.labels(self._name, record.topic, kind).inc()
        if kind == "transient":  # a permanent error is told when the message is given up
            log.warning("handling failed", **self.about(error, record))

    def count(self, deliveries: Sequence[Delivery], fresh: Sequence[Delivery]) -> None:
        """Count what was consumed; of the deliveries, those that are not fresh are duplicates."""
        for topic, group in groupby(d.record.topic for d in deliveries):
            metrics.messages_consumed.labels(self._name, topic).inc(len(list(group)))
        if len(fresh) == len(deliveries):
            return
        applied = {id(delivery) for delivery in fresh}
        for delivery in deliveries:
            if id(delivery) not in applied:
                metrics.inbox_duplicates.labels(self._name, delivery.record.topic).inc()
                log.info("duplicate skipped", **self.place(delivery.record))

    def tell(self, applied: Sequence[Delivery]) -> None:
        if len(applied) > STORY_LENGTH:
            log.info("events applied", consumer=self._name, events=len(applied))
            return
        for delivery in applied:
            log.info("event applied", **self.place(delivery.record))

    def about(self, error: Exception, record: ConsumerRecord | None = None) -> dict[str, object]:
        place = {} if record is None else self.place(record)
        return {"consumer": self._name, **place, **describe(error)}

    def at_last(self, error: Exception, record: ConsumerRecord) -> dict[str, object]:
        """Describe the error that a message is given up for."""
        # Where it was raised, once a message; a permanent error says why by itself.
        raised = {} if self.is_permanent(error) else {"exc_info": error}
        return {**self.about(error, record), **raised}

    def place(self, record: ConsumerRecord) -> dict[str, object]:
        return {
            "consumer": self._name,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "event_id": header(record.headers, CE_ID),
            "correlation_id": header(record.headers, CORRELATION_ID),
        }
