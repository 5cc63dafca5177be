"""Retries: how long to wait in place, and where a message goes when that did not help."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from aiokafka import ConsumerRecord

from app.kafka import message as names
from app.kafka.message import Message, header, header_number, header_time, with_headers
from app.kafka.subscription import RetryPolicy, Subscription
from app.kafka.topics import dead_letter_topic, is_delay_topic, replay_topic, retry_topic

ERROR_MESSAGE_LENGTH = 2000


def backoff(
    policy: RetryPolicy, attempt: int, chance: Callable[[], float] = random.random
) -> float:
    """Seconds to wait after the failed attempt number `attempt` (the first is 1)."""
    # The exponent is bounded, so that a message retried for days does not overflow a float.
    wait = min(policy.maximum, policy.initial * policy.multiplier ** min(attempt - 1, 64))
    return wait * (1 - policy.jitter * chance())


def stages(subscription: Subscription, origin: str) -> list[str]:
    """The topics that a failing message passes, from its own to the last delay topic."""
    delays = subscription.retry.retry_after
    return [origin, *(retry_topic(origin, subscription.name, delay) for delay in delays)]


def delay_after(subscription: Subscription, origin: str, topic: str) -> timedelta | None:
    """The delay that comes next for a message that failed on `topic`; None: dead letter."""
    passed = stages(subscription, origin)
    stage = passed.index(topic) if topic in passed else 0  # a replayed message begins anew
    delays = subscription.retry.retry_after
    return delays[stage] if stage < len(delays) else None


def delayed(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    delay: timedelta,
    attempts: int,
    error: BaseException,
) -> Message:
    """`record` on its way to a delay topic."""
    now = datetime.now(UTC)
    topic = retry_topic(origin, subscription.name, delay)
    history = _history(record, subscription, origin, attempts, error, now)
    history[names.DUE_AT] = (now + delay).isoformat()
    return Message(
        topic, record.key, record.value, with_headers(record.headers, history), forwarded=True
    )


def dead_letter(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    attempts: int,
    error: BaseException,
) -> Message:
    """`record` on its way to the dead letter topic: key, bytes and headers as they were."""
    history = _history(record, subscription, origin, attempts, error, datetime.now(UTC))
    history[names.DUE_AT] = None
    return Message(
        dead_letter_topic(origin, subscription.name),
        record.key,
        # A record with neither key nor value is legal, but the client sends none.
        b"" if record.key is None and record.value is None else record.value,
        with_headers(record.headers, history),
        forwarded=True,
    )


def replayed(record: ConsumerRecord) -> Message:
    """A dead letter on its way back to the consumer that it failed in, and to no other.

    Raises ValueError when the record does not say where it came from.
    """
    origin = header(record.headers, names.ORIGIN_TOPIC)
    consumer = header(record.headers, names.CONSUMER)
    if origin is None or consumer is None:
        raise ValueError(
            f"offset {record.offset} of {record.topic} has no {names.ORIGIN_TOPIC} and"
            f" {names.CONSUMER} headers: it is no dead letter of this service"
        )
    changes = {names.REPLAYED_AT: datetime.now(UTC).isoformat(), names.ATTEMPTS: None}
    return Message(
        replay_topic(origin, consumer),
        record.key,
        record.value,
        with_headers(record.headers, changes),
        forwarded=True,
    )


def attempts_so_far(record: ConsumerRecord) -> int:
    """Attempts made before this delivery, over all topics that the message has passed."""
    return header_number(record.headers, names.ATTEMPTS)


def due_at(record: ConsumerRecord) -> datetime | None:
    """When a delayed message may be handled; None: at once.

    Elsewhere than on a delay topic the header is somebody else's, and must not hold a partition.
    """
    return header_time(record.headers, names.DUE_AT) if is_delay_topic(record.topic) else None


def _history(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    attempts: int,
    error: BaseException,
    now: datetime,
) -> dict[str, str | None]:
    first_hop = record.topic == origin
    history: dict[str, str | None] = {
        names.CONSUMER: subscription.name,
        names.ATTEMPTS: str(attempts),
        names.LAST_FAILED_AT: now.isoformat(),
        names.ERROR_TYPE: type(error).__name__,
        names.ERROR_MESSAGE: str(error)[:ERROR_MESSAGE_LENGTH],
    }
    if first_hop or header(record.headers, names.ORIGIN_OFFSET) is None:
        history |= {
            names.ORIGIN_TOPIC: origin,
            names.ORIGIN_PARTITION: str(record.partition),
            names.ORIGIN_OFFSET: str(record.offset),
            names.ORIGIN_TIMESTAMP: str(record.timestamp),
        }
    if first_hop or header(record.headers, names.FIRST_FAILED_AT) is None:
        history[names.FIRST_FAILED_AT] = now.isoformat()
    return history
