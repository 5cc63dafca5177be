"""Forwarding failed messages: to the next delay topic, or to the dead letter topic."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

import structlog

from app.platform.backoff import Backoff
from app.platform.database.errors import summary
from app.platform.kafka import metrics
from app.platform.kafka.codec import Message
from app.platform.kafka.delivery import Delivery, Undecodable
from app.platform.kafka.errors import MessageRejected, MessageTooLarge, SendError
from app.platform.kafka.producer import Producer
from app.platform.kafka.reporting import Reporter
from app.platform.kafka.retry import (
    dead_letter_message,
    delayed_message,
    next_delay,
    reduced_letters,
)
from app.platform.kafka.status import ConsumerStatus
from app.platform.kafka.subscription import Subscription

log = structlog.get_logger(__name__)

# Waiting cannot make the topic accept the message.
_PERMANENT_REFUSALS = (MessageTooLarge, MessageRejected)


class Forwarder:
    """The part of a consumer that forwards failed messages, and waits out outages."""

    def __init__(
        self,
        subscription: Subscription,
        source_topics: Mapping[str, str],
        producer: Producer,
        status: ConsumerStatus,
        reporter: Reporter,
    ) -> None:
        self._subscription = subscription
        self._name = subscription.name
        self._source_topics = source_topics
        self._producer = producer
        self._status = status
        self._reporter = reporter

    async def give_up(
        self,
        failed: Delivery | Undecodable,
        error: Exception,
        attempts: int,
        first_failed_at: datetime | None = None,
    ) -> None:
        """Move the message to the next delay topic, or to the dead letter topic.

        `attempts` are all so far. `first_failed_at` is the time of the first one, if there were several.
        """
        record = failed.record
        origin = self._source_topics[record.topic]
        delay = None
        if not self._reporter.is_permanent(error):
            delay = next_delay(self._subscription, origin, record.topic)
        if delay is not None:
            message = delayed_message(
                record, self._subscription, origin, delay, attempts, error, first_failed_at
            )
            if await self._forward(message):
                metrics.messages_retried.labels(self._name, origin, "delay_topic").inc()
                log.warning(
                    "message delayed",
                    to=message.topic,
                    **self._reporter.final_failure_fields(error, failed, attempts),
                )
                return
        message = dead_letter_message(
            record, self._subscription, origin, attempts, error, first_failed_at
        )
        await self._forward_reduced(message)
        metrics.messages_dead_lettered.labels(self._name, origin).inc()
        log.error(
            "message dead-lettered",
            to=message.topic,
            **self._reporter.final_failure_fields(error, failed, attempts),
        )

    async def _forward_reduced(self, letter: Message) -> None:
        """Send a dead letter, with less of its message each time that its topic refuses the size."""
        *larger, smallest = reduced_letters(letter)
        for message in larger:
            if await self._forward(message):
                return
        await self.retry_while_unavailable(lambda: self._producer.send(smallest), _is_send_error)

    async def _forward(self, message: Message) -> bool:
        """Send `message`; return False if its topic does not take one of this size."""
        # Until Kafka confirms it, only the message's own partition has it: retry any other refusal.
        try:
            await self.retry_while_unavailable(
                lambda: self._producer.send(message),
                lambda error: _is_send_error(error) and not isinstance(error, _PERMANENT_REFUSALS),
            )
        except _PERMANENT_REFUSALS:
            return False
        self._status.record_progress()
        return True

    async def retry_while_unavailable(
        self, work: Callable[[], Awaitable[None]], is_infrastructure: Callable[[Exception], bool]
    ) -> None:
        """Do `work`, and repeat it, uncounted, while the database or the broker is unavailable."""
        backoff = Backoff(0.1, 5.0, jitter=0.3)
        while True:
            try:
                await work()
            except Exception as error:
                if not is_infrastructure(error):
                    raise
                metrics.infrastructure_waits.labels(self._name).inc()
                self._status.block(summary(error))
                await self._status.wait(backoff.next())
            else:
                if self._status.block_reason is not None:
                    self._status.unblock()
                return


def _is_send_error(error: Exception) -> bool:
    return isinstance(error, SendError)
