"""Retries: waits, the messages for delay and dead letter topics, and the circuit breaker."""

import traceback
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from aiokafka import ConsumerRecord

from app.platform.backoff import Backoff
from app.platform.database.errors import error_message, summary
from app.platform.kafka import codec as names
from app.platform.kafka.codec import (
    Header,
    Message,
    header,
    header_number,
    header_time,
    keep_originals,
    with_headers,
)
from app.platform.kafka.consumer_spans import last_attempt
from app.platform.kafka.subscription import OverloadPolicy, Subscription
from app.platform.kafka.topics import (
    dead_letter_topic,
    failure_topic,
    is_delay_topic,
    replay_topic,
    retry_topic,
)

ERROR_MESSAGE_LENGTH = 2000
_TRACEBACK_CALLS, _TRACEBACK_LENGTH = 8, 4000
_BRIEF_BYTES = 250  # the longest possible topic name


def retry_path(subscription: Subscription, origin: str) -> list[str]:
    """Return the topics that a failing message passes, from its own to the last delay topic."""
    delays = subscription.retry.retry_after
    return [origin, *(retry_topic(origin, subscription.name, delay) for delay in delays)]


def next_delay(subscription: Subscription, origin: str, topic: str) -> timedelta | None:
    """Return the next delay of a message that failed on `topic`; None: dead letter."""
    path = retry_path(subscription, origin)
    stage = path.index(topic) if topic in path else 0  # a replayed message starts again
    delays = subscription.retry.retry_after
    return delays[stage] if stage < len(delays) else None


def delayed_message(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    delay: timedelta,
    attempts: int,
    error: BaseException,
    first_failed_at: datetime | None = None,
) -> Message:
    """Build the message that takes `record` to a delay topic."""
    now = datetime.now(UTC)
    topic = retry_topic(origin, subscription.name, delay)
    first = first_failed_at or now
    history = _history(record, subscription, origin, attempts, error, first, now)
    history[names.DUE_AT] = (now + delay).isoformat()
    return Message(
        topic, record.key, _value(record), _headers(record, origin, history), forwarded=True
    )


def dead_letter_message(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    attempts: int,
    error: BaseException,
    first_failed_at: datetime | None = None,
) -> Message:
    """Build the message that takes `record`, with its key, bytes and headers, to the dead letters.

    It failed for the first time now, or at `first_failed_at`, or when its headers say so.
    """
    now = datetime.now(UTC)
    first = first_failed_at or now
    history = _history(record, subscription, origin, attempts, error, first, now)
    history[names.ERROR_TRACEBACK] = _traceback(error)
    history |= dict.fromkeys(
        (names.DUE_AT, names.DISCARDS, names.DISCARDS_TIMESTAMP, names.OMITTED_BYTES)
    )
    return Message(
        dead_letter_topic(origin, subscription.name),
        record.key,
        _value(record),
        _headers(record, origin, history),
        forwarded=True,
    )


def _traceback(error: BaseException) -> str | None:
    """Return the last calls before `error`: places in the code, without messages and values."""
    calls = traceback.extract_tb(error.__traceback__)[-_TRACEBACK_CALLS:]
    return "".join(traceback.format_list(calls))[-_TRACEBACK_LENGTH:] or None


def _value(record: ConsumerRecord) -> bytes | None:
    # A record with neither key nor value is legal, but the client refuses to send one.
    return b"" if record.key is None and record.value is None else record.value


def _headers(
    record: ConsumerRecord, origin: str, history: dict[str, str | None]
) -> tuple[Header, ...]:
    sent = keep_originals(record.headers) if record.topic == origin else record.headers
    return with_headers(sent, history)


def reduced_letters(letter: Message) -> list[Message]:
    """Return the dead letter followed by ever smaller versions, for topics with a low size limit.

    The last one has little more than the position of the message on its own topic, which keeps it until
    its retention ends.
    """
    own = [(name, text) for name, text in letter.headers if name in names.HISTORY]
    brief = [(name, (text or b"")[:_BRIEF_BYTES]) for name, text in own]
    letters = [letter]
    for key, headers in [(letter.key, letter.headers), (letter.key, own), (None, brief)]:
        reduced = _without_value(letter, key, headers)
        if reduced.size < letters[-1].size:
            letters.append(reduced)
    return letters


def _without_value(letter: Message, key: bytes | None, headers: Sequence[Header]) -> Message:
    reduced = letter._replace(key=key, value=b"", headers=tuple(headers))
    omitted = _content_bytes(letter) - _content_bytes(reduced)
    # Even an empty value was replaced, so at least one byte is reported.
    changes: dict[str, str | None] = {names.OMITTED_BYTES: str(max(1, omitted))}
    return reduced._replace(headers=with_headers(headers, changes))


def _content_bytes(letter: Message) -> int:
    texts = [part for header in letter.headers for part in (header[0].encode(), header[1])]
    return sum(len(text or b"") for text in (letter.key, letter.value, *texts))


def replay_message(record: ConsumerRecord, to: str | None = None) -> Message:
    """Build the message that takes a dead letter back to its consumer, or `to` another one.

    Raises ValueError if the record lacks its origin, or part of its message.
    """
    origin = header(record.headers, names.ORIGIN_TOPIC)
    consumer = header(record.headers, names.CONSUMER)
    if origin is None or consumer is None:
        raise ValueError(
            f"offset {record.offset} of {record.topic} has no {names.ORIGIN_TOPIC} and"
            f" {names.CONSUMER} headers: it is not a dead letter of this service"
        )
    if size := header_number(record.headers, names.OMITTED_BYTES):
        place = f"{origin}[{header_number(record.headers, names.ORIGIN_PARTITION)}]"
        offset = header_number(record.headers, names.ORIGIN_OFFSET)
        raise ValueError(
            f"offset {record.offset} of {record.topic} lacks {size} bytes of its message, because they"
            f" exceeded the topic's limit: read offset {offset} of {place} while retention keeps it"
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


def discard_tombstone(record: ConsumerRecord) -> Message:
    """Build the tombstone that marks a dead letter as discarded; Kafka records cannot be deleted."""
    headers: dict[str, str | None] = {
        names.DISCARDS: dead_letter_id(record),
        # After an unclean leader election another record may have this one's offset.
        names.DISCARDS_TIMESTAMP: str(record.timestamp),
    }
    found = failure_topic(record.topic)  # of orphaned delay topics, too, in the dead letter topic
    topic = dead_letter_topic(found.origin, found.consumer) if found else record.topic
    return Message(topic, record.key, b"", with_headers((), headers), forwarded=True)


def dead_letter_id(record: ConsumerRecord) -> str:
    """Return the name of a dead letter on the command line: topic:partition:offset."""
    return f"{record.topic}:{record.partition}:{record.offset}"


def previous_attempts(record: ConsumerRecord, origin: str) -> int:
    """Return the number of attempts before this delivery, in all topics of the message.

    On its own topic, the header is the sender's.
    """
    return 0 if record.topic == origin else header_number(record.headers, names.ATTEMPTS)


def due_at(record: ConsumerRecord, origin: str) -> datetime | None:
    """Return the time from which a delayed message may be handled; None if at once.

    Outside the delay topics of `origin` the header is somebody else's, and must not delay a partition.
    """
    if not is_delay_topic(record.topic, origin):
        return None
    return header_time(record.headers, names.DUE_AT)


def _history(
    record: ConsumerRecord,
    subscription: Subscription,
    origin: str,
    attempts: int,
    error: BaseException,
    first: datetime,
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
    if (attempt := last_attempt(record)) is not None:
        history[names.ATTEMPT_TRACEPARENT] = attempt
    if first_hop or header(record.headers, names.ORIGIN_OFFSET) is None:
        history |= {
            names.ORIGIN_TOPIC: origin,
            names.ORIGIN_PARTITION: str(record.partition),
            names.ORIGIN_OFFSET: str(record.offset),
            names.ORIGIN_TIMESTAMP: str(record.timestamp),
        }
    if first_hop or header(record.headers, names.FIRST_FAILED_AT) is None:
        history[names.FIRST_FAILED_AT] = first.isoformat()
    if first_hop:
        history |= {names.REPLAYED_AT: None, names.REPLAYS: None}
    return history


class CircuitBreaker:
    """A breaker that opens when most of the last messages failed, and closes at the next success."""

    def __init__(self, policy: OverloadPolicy) -> None:
        self._policy = policy
        self._failures: deque[bool] = deque(maxlen=policy.window)
        self._backoff = Backoff(policy.probe_initial, policy.probe_maximum)
        self.last_error = ""
        self.is_open = False

    def succeeded(self, messages: int = 1) -> bool:
        """Count messages whose effects are committed; return True if that closed the breaker."""
        if self.is_open:
            self.is_open = False
            self._failures.clear()
            return True
        self._failures.extend([False] * min(messages, self._policy.window))
        return False

    def failed(self, error: BaseException) -> bool:
        """Count a message that failed for good; return True if that opened the breaker."""
        self.last_error = summary(error)
        self._failures.append(True)
        full = len(self._failures) == self._policy.window
        if self.is_open or not full or self.share_failed < self._policy.threshold:
            return False
        self.is_open = True
        self._backoff.reset()
        return True

    @property
    def share_failed(self) -> float:
        return sum(self._failures) / len(self._failures) if self._failures else 0.0

    def probe_wait(self) -> float:
        """Return the seconds until the next probe, twice as many as before the last one."""
        return self._backoff.next()
