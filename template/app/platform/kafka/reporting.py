"""Logs and metrics of the messages of a subscription."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import structlog
from aiokafka import ConsumerRecord

from app.platform.database.errors import error_message
from app.platform.kafka import metrics
from app.platform.kafka.codec import CE_ID, CORRELATION_ID, header, trace_of
from app.platform.kafka.consumer_spans import ids_of_attempt
from app.platform.kafka.delivery import Delivery, Undecodable
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription

log = structlog.get_logger(__name__)

# Larger transactions get one log line, because a line for each event would cost more than the work.
MAX_LOGGED_EVENTS = 10


class Reporter:
    """Logs and counts the outcomes of the messages of one subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._name = subscription.name

    def is_permanent(self, error: Exception) -> bool:
        """Return whether every further attempt would fail, too."""
        return isinstance(error, (PermanentError, *self._subscription.retry.permanent))

    def record_failure(
        self, message: Delivery | Undecodable, error: Exception, kind: str, attempt: int
    ) -> None:
        """Count an attempt that failed, and log it. `attempt` counts from 1, in all topics."""
        metrics.messages_failed.labels(self._name, message.record.topic, kind).inc()
        if kind == "transient":  # a permanent error is logged with the dead letter
            log.warning("handling failed", **self.failure_fields(error, message, attempt))

    def count_consumed(self, deliveries: Sequence[Delivery], fresh: Sequence[Delivery]) -> None:
        """Count consumed messages; those that are not in `fresh` are duplicates."""
        for topic, group in groupby(d.record.topic for d in deliveries):
            metrics.messages_consumed.labels(self._name, topic).inc(len(list(group)))
        if len(fresh) == len(deliveries):
            return
        applied = {id(delivery) for delivery in fresh}
        for delivery in deliveries:
            if id(delivery) not in applied:
                metrics.inbox_duplicates.labels(self._name, delivery.record.topic).inc()
                log.info("duplicate skipped", **self.record_fields(delivery.record))

    def log_applied(self, applied: Sequence[Delivery]) -> None:
        if len(applied) > MAX_LOGGED_EVENTS:
            log.info("events applied", consumer=self._name, events=len(applied))
            return
        for delivery in applied:
            log.info("event applied", **self._fields_of(delivery))

    def error_fields(self, error: Exception) -> dict[str, object]:
        return {"consumer": self._name, **error_fields(error)}

    def failure_fields(
        self, error: Exception, message: Delivery | Undecodable, attempt: int
    ) -> dict[str, object]:
        """Return the log fields of a failed attempt, with the ids of its span."""
        record = message.record
        known = (
            self._fields_of(message)
            if isinstance(message, Delivery)
            else self.record_fields(record)
        )
        return {**known, **ids_of_attempt(record), "attempt": attempt, **error_fields(error)}

    def final_failure_fields(
        self, error: Exception, message: Delivery | Undecodable, attempt: int
    ) -> dict[str, object]:
        """Return the log fields of the attempt after which a message is given up."""
        # The traceback once for each message; a permanent error explains itself.
        traceback = {} if self.is_permanent(error) else {"exc_info": error}
        return {**self.failure_fields(error, message, attempt), **traceback}

    def _fields_of(self, delivery: Delivery) -> dict[str, object]:
        """Return the log fields of a message with its ids, which a foreign one has in no header."""
        event_id = delivery.event.event_id
        trace = trace_of(delivery.record.headers, event_id)
        ids = {"event_id": str(event_id), "correlation_id": trace.correlation_id}
        return self.record_fields(delivery.record) | ids

    def record_fields(self, record: ConsumerRecord) -> dict[str, object]:
        return {
            "consumer": self._name,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "event_id": header(record.headers, CE_ID),
            "correlation_id": header(record.headers, CORRELATION_ID),
        }


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return the log fields of an exception."""
    return {"error_type": type(error).__name__, "error": error_message(error)[:1000]}
