"""Retries: how long to wait, where a message goes when that did not help, and when to stop taking more."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from aiokafka import ConsumerRecord

from app.platform.database.errors import error_message, summary
from app.platform.kafka import codec as names
from app.platform.kafka.codec import (
    Header,
    Message,
    header,
    header_number,
    header_time,
    with_headers,
)
from app.platform.kafka.subscription import OverloadPolicy, RetryPolicy, Subscription
from app.platform.kafka.topics import (
    dead_letter_topic,
    failure_topic,
    is_delay_topic,
    replay_topic,
    retry_topic,
)

ERROR_MESSAGE_LENGTH = 2000
_BRIEF_BYTES = 250  # the longest name of a topic


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
    history |= dict.fromkeys(
        (names.DUE_AT, names.DISCARDS, names.DISCARDS_TIMESTAMP, names.OMITTED_BYTES)
    )
    return Message(
        dead_letter_topic(origin, subscription.name),
        record.key,
        # A record with neither key nor value is legal, but the client sends none.
        b"" if record.key is None and record.value is None else record.value,
        with_headers(record.headers, history),
        forwarded=True,
    )


def shortened(letter: Message) -> list[Message]:
    """A dead letter whole, and with ever less of its message, for a topic that takes no more.

    The last one says little more than where the message is: on its own topic, for as long as that
    keeps it.
    """
    own = [(name, text) for name, text in letter.headers if name in names.HISTORY]
    brief = [(name, (text or b"")[:_BRIEF_BYTES]) for name, text in own]
    letters = [letter]
    for key, headers in [(letter.key, letter.headers), (letter.key, own), (None, brief)]:
        less = _reduced(letter, key, headers)
        if less.size < letters[-1].size:
            letters.append(less)
    return letters


def _reduced(letter: Message, key: bytes | None, headers: Sequence[Header]) -> Message:
    less = letter._replace(key=key, value=b"", headers=tuple(headers))
    omitted = _content_bytes(letter) - _content_bytes(less)
    # A letter without its value is not whole, however little that was.
    changes: dict[str, str | None] = {names.OMITTED_BYTES: str(max(1, omitted))}
    return less._replace(headers=with_headers(headers, changes))


def _content_bytes(letter: Message) -> int:
    texts = [part for header in letter.headers for part in (header[0].encode(), header[1])]
    return sum(len(text or b"") for text in (letter.key, letter.value, *texts))


def replayed(record: ConsumerRecord, to: str | None = None) -> Message:
    """A dead letter on its way back to the consumer that it failed in, or `to` another one.

    Raises ValueError when the record does not say where it came from, or is not whole.
    """
    origin = header(record.headers, names.ORIGIN_TOPIC)
    consumer = header(record.headers, names.CONSUMER)
    if origin is None or consumer is None:
        raise ValueError(
            f"offset {record.offset} of {record.topic} has no {names.ORIGIN_TOPIC} and"
            f" {names.CONSUMER} headers: it is no dead letter of this service"
        )
    if size := header_number(record.headers, names.OMITTED_BYTES):
        place = f"{origin}[{header_number(record.headers, names.ORIGIN_PARTITION)}]"
        raise ValueError(
            f"offset {record.offset} of {record.topic} is not whole, because its topic does not take"
            f" {size} bytes more: the message is at offset {header_number(record.headers, names.ORIGIN_OFFSET)} of"
            f" {place}, for as long as that is kept"
        )
    consumer = to or consumer
    changes: dict[str, str | None] = {
        names.CONSUMER: consumer,
        names.DUE_AT: None,
        names.REPLAYED_AT: datetime.now(UTC).isoformat(),
        names.REPLAYS: str(header_number(record.headers, names.REPLAYS) + 1),
    }
    return Message(
        replay_topic(origin, consumer),
        record.key,
        record.value,
        with_headers(record.headers, changes),
        forwarded=True,
    )


def discarded(record: ConsumerRecord) -> Message:
    """The marker of a discarded dead letter: nothing can be taken out of Kafka."""
    headers: dict[str, str | None] = {
        names.DISCARDS: dead_letter_id(record),
        # After an unclean leader election another record may have this one's offset.
        names.DISCARDS_TIMESTAMP: str(record.timestamp),
    }
    found = failure_topic(record.topic)  # what waits for a delay is discarded in the same topic
    topic = dead_letter_topic(found.origin, found.consumer) if found else record.topic
    return Message(topic, record.key, b"", with_headers((), headers), forwarded=True)


def dead_letter_id(record: ConsumerRecord) -> str:
    """The name of a dead letter on the command line: topic:partition:offset."""
    return f"{record.topic}:{record.partition}:{record.offset}"


def attempts_so_far(record: ConsumerRecord) -> int:
    """Attempts made before this delivery, over all topics that the message has passed."""
    return header_number(record.headers, names.ATTEMPTS)


def due_at(record: ConsumerRecord) -> datetime | None:
    """Return when a delayed message may be handled; None if at once.

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
        names.ERROR_MESSAGE: error_message(error)[:ERROR_MESSAGE_LENGTH],
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
    if first_hop:
        history |= {names.REPLAYED_AT: None, names.REPLAYS: None}
    return history


class Breaker:
    """Opens when most of the last messages failed for good; closes at the first success after."""

    def __init__(self, policy: OverloadPolicy) -> None:
        self._policy = policy
        self._failures: deque[bool] = deque(maxlen=policy.window)
        self._probes = 0
        self.last_error = ""
        self.is_open = False

    def succeeded(self, messages: int = 1) -> bool:
        """Count messages whose effects are committed; True when that closed the breaker."""
        if self.is_open:
            self.is_open = False
            self._failures.clear()
            return True
        self._failures.extend([False] * min(messages, self._policy.window))
        return False

    def failed(self, error: BaseException) -> bool:
        """Count a message that is to be given up; True when that opened the breaker."""
        self.last_error = summary(error)
        self._failures.append(True)
        full = len(self._failures) == self._policy.window
        if self.is_open or not full or self.share_failed < self._policy.threshold:
            return False
        self.is_open = True
        self._probes = 0
        return True

    @property
    def share_failed(self) -> float:
        return sum(self._failures) / len(self._failures) if self._failures else 0.0

    def probe_wait(self) -> float:
        """Seconds until the next probe; each is twice as far away as the one before."""
        wait: float = self._policy.probe_initial * 2 ** min(self._probes, 32)
        self._probes += 1
        return min(wait, self._policy.probe_maximum)
