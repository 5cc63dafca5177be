"""Sending on what cannot be handled: to the next delay topic, or to the dead letter topic."""

import random
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiokafka import ConsumerRecord

from app.platform.database.errors import summary
from app.platform.kafka import metrics
from app.platform.kafka.codec import Message
from app.platform.kafka.errors import MessageRejected, MessageTooLarge, SendError
from app.platform.kafka.metrics import ConsumerStatus
from app.platform.kafka.producer import Producer
from app.platform.kafka.reporting import Reporter
from app.platform.kafka.retry import dead_letter, delay_after, delayed, shortened
from app.platform.kafka.subscription import Subscription

log = structlog.get_logger(__name__)

INFRASTRUCTURE_WAIT_SECONDS = (0.1, 5.0)
# Nothing that is waited for would make the topic take it.
_REFUSED_FOR_GOOD = (MessageTooLarge, MessageRejected)


class Forwarder:
    """Sends on the messages of one subscription, and waits for as long as the broker is away."""

    def __init__(
        self,
        subscription: Subscription,
        origins: Mapping[str, str],
        producer: Producer,
        status: ConsumerStatus,
        reporter: Reporter,
    ) -> None:
        self._subscription = subscription
        self._name = subscription.name
        self._origins = origins
        self._producer = producer
        self._status = status
        self._reporter = reporter

    async def give_up(self, record: ConsumerRecord, error: Exception, attempts: int) -> None:
        """Put the message where it is not lost: the next delay topic, or the dead letter topic."""
        origin = self._origins[record.topic]
        delay = None
        if not self._reporter.is_permanent(error):
            delay = delay_after(self._subscription, origin, record.topic)
        if delay is not None:
            message = delayed(record, self._subscription, origin, delay, attempts, error)
            if await self._forward(message):
                metrics.messages_retried.labels(self._name, origin, "delay_topic").inc()
                log.warning(
                    "message delayed", to=message.topic, **self._reporter.at_last(error, record)
                )
                return
        message = dead_letter(record, self._subscription, origin, attempts, error)
        await self._forward_smaller(message)
        metrics.messages_dead_lettered.labels(self._name, origin).inc()
        log.error(
            "message dead-lettered", to=message.topic, **self._reporter.at_last(error, record)
        )

    async def _forward_smaller(self, letter: Message) -> None:
        """Send a dead letter, with less and less of its message until its topic takes it."""
        *larger, smallest = shortened(letter)
        for message in larger:
            if await self._forward(message):
                return
        await self.patiently(lambda: self._producer.send(smallest), _is_unsent)

    async def _forward(self, message: Message) -> bool:
        """Send it on; False if its topic does not take a message of this size."""
        # Until Kafka confirms it, the message is nowhere but on its own partition: keep at it,
        # whatever else the reason is for which it is not taken.
        try:
            await self.patiently(
                lambda: self._producer.send(message),
                lambda error: _is_unsent(error) and not isinstance(error, _REFUSED_FOR_GOOD),
            )
        except _REFUSED_FOR_GOOD:
            return False
        self._status.progressed()
        return True

    async def patiently(
        self, work: Callable[[], Awaitable[None]], is_infrastructure: Callable[[Exception], bool]
    ) -> None:
        """Do `work`; while database or broker are away, wait and do it again, uncounted."""
        wait, longest = INFRASTRUCTURE_WAIT_SECONDS
        while True:
            try:
                await work()
            except Exception as error:
                if not is_infrastructure(error):
                    raise
                metrics.infrastructure_waits.labels(self._name).inc()
                self._status.blocked(summary(error))
                await self._status.wait(wait * (1 - 0.3 * random.random()))
                wait = min(wait * 2, longest)
            else:
                if self._status.trouble is not None:
                    self._status.unblocked()
                return


def _is_unsent(error: Exception) -> bool:
    return isinstance(error, SendError)
