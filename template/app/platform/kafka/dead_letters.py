"""Dead letters: reading and filtering them."""

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from aiokafka import ConsumerRecord

from app.platform.events.event import EventRegistry
from app.platform.kafka import codec as names
from app.platform.kafka.admin import read_to_end, reading
from app.platform.kafka.codec import header, header_number, header_time
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.errors import UndecodableMessage
from app.platform.kafka.retry import dead_letter_id
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import FailureTopic, dead_letter_topic


class Identity(NamedTuple):
    """The identity of a message that failed in a consumer, the same after each failure.

    The offset alone is not enough, because a topic that is deleted and created again counts from 0.
    A replay changes neither key nor value.
    """

    consumer: str
    origin: str
    partition: int
    offset: int
    timestamp: str
    content: bytes


@dataclass(frozen=True)
class DeadLetter:
    """A message in a dead letter topic, with its history from the headers."""

    record: ConsumerRecord
    consumer: str
    origin: str
    origin_partition: int
    origin_offset: int
    attempts: int
    replays: int
    error_type: str
    error_message: str
    omitted_bytes: int
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    discards: str | None  # the id of a discarded letter, of which this record is the tombstone
    discards_timestamp: str | None  # of the discarded record; None in tombstones of older services

    @classmethod
    def of(cls, record: ConsumerRecord) -> "DeadLetter":
        """Read the headers of `record`; missing ones count as empty, so that it can be shown."""

        def text(name: str) -> str:
            return header(record.headers, name) or ""

        return cls(
            record=record,
            consumer=text(names.CONSUMER),
            origin=text(names.ORIGIN_TOPIC),
            origin_partition=header_number(record.headers, names.ORIGIN_PARTITION),
            origin_offset=header_number(record.headers, names.ORIGIN_OFFSET),
            attempts=header_number(record.headers, names.ATTEMPTS),
            replays=header_number(record.headers, names.REPLAYS),
            error_type=text(names.ERROR_TYPE),
            error_message=text(names.ERROR_MESSAGE),
            omitted_bytes=header_number(record.headers, names.OMITTED_BYTES),
            first_failed_at=header_time(record.headers, names.FIRST_FAILED_AT),
            last_failed_at=header_time(record.headers, names.LAST_FAILED_AT),
            discards=header(record.headers, names.DISCARDS),
            discards_timestamp=header(record.headers, names.DISCARDS_TIMESTAMP),
        )

    @property
    def id(self) -> str:
        """The name of the dead letter on the command line: topic:partition:offset."""
        return dead_letter_id(self.record)

    @cached_property
    def identity(self) -> Identity:
        """The identity of the message, which its other dead letters share."""
        return Identity(
            self.consumer,
            self.origin,
            self.origin_partition,
            self.origin_offset,
            header(self.record.headers, names.ORIGIN_TIMESTAMP) or "",
            _digest(self.record.key, self.record.value),
        )

    @property
    def key(self) -> str:
        return (self.record.key or b"").decode("utf-8", "replace")

    @property
    def event_id(self) -> UUID | None:
        """The event id of a message in this service's format; None if it has none."""
        # The consumer reads the id from the body.
        candidates = [_event_id_of(self.record.value), header(self.record.headers, names.CE_ID)]
        for candidate in candidates:
            try:
                return UUID(candidate or "")
            except ValueError:
                continue
        return None


def inbox_id(letter: DeadLetter, decoder: EventDecoder) -> UUID | None:
    """Return the id that the inbox would have of the letter's message; None if it has none."""
    if decoder.reads_own_format(letter.origin) and letter.record.value is not None:
        return letter.event_id
    return decoder.identify(letter.record, letter.origin)


def decoder_of(
    consumer: str, registry: EventRegistry, subscriptions: Iterable[Subscription]
) -> EventDecoder:
    """Return a decoder of all events, which knows the tombstones that `consumer` handles."""
    handled = [each.tombstones for each in subscriptions if each.name == consumer]
    return EventDecoder(registry, tombstones=handled[0] if handled else ())


@dataclass(frozen=True)
class Filter:
    """Criteria for dead letters. None means any; `error_type` ignores case."""

    consumer: str | None = None
    topic: str | None = None
    error_type: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def may_match(self, topic: FailureTopic) -> bool:
        """Return whether a letter in `topic` can match."""
        return self.consumer in (None, topic.consumer) and self.topic in (None, topic.origin)

    def matches(self, letter: DeadLetter) -> bool:
        failed = letter.last_failed_at
        return (
            self.consumer in (None, letter.consumer)
            and self.topic in (None, letter.origin)
            and (self.error_type is None or self.error_type.lower() == letter.error_type.lower())
            and self.key in (None, letter.key)
            and (self.since is None or (failed is not None and failed >= self.since))
            and (self.until is None or (failed is not None and failed < self.until))
        )


def dead_letter_topics(
    subscriptions: Iterable[Subscription], registry: EventRegistry, only: Filter
) -> list[str]:
    """Return the dead letter topics whose letters can match `only`."""
    return [
        dead_letter_topic(topic, subscription.name)
        for subscription in subscriptions
        if only.consumer in (None, subscription.name)
        for topic in subscription.topics(registry)
        if only.topic in (None, topic)
    ]


async def read_dead_letters(
    settings: KafkaSettings, topics: Sequence[str]
) -> AsyncGenerator[DeadLetter, None]:
    """Yield all letters, and tombstones, in `topics`. Raises BrokerUnavailable."""
    async with reading(settings, topics) as client:
        async for record in read_to_end(client):
            yield DeadLetter.of(record)


def current_letters(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Return the newest letter of each message, without those that were discarded.

    Without this, each failed replay would double a message.
    """
    found: dict[object, DeadLetter] = {}
    discarded: set[tuple[str, str | None]] = set()
    for letter in letters:
        if letter.discards is not None:
            discarded.add((letter.discards, letter.discards_timestamp))
            continue
        # Letters without an origin cannot be compared, so each of them counts.
        identity = letter.identity if letter.origin else letter.id
        other = found.get(identity)
        if other is None or _written_at(letter) > _written_at(other):
            found[identity] = letter
    return [
        letter
        for letter in found.values()
        if discarded.isdisjoint({(letter.id, str(letter.record.timestamp)), (letter.id, None)})
    ]


def is_decodable(letter: DeadLetter, decoder: EventDecoder) -> bool:
    """Return whether this version of the service can decode the event, so that a replay makes sense."""
    try:
        return decoder.decode(letter.record, letter.origin) is not None
    except UndecodableMessage:
        return False


def _written_at(letter: DeadLetter) -> tuple[int, int]:
    # A message without a key may return to another partition, so offsets alone do not compare.
    return (letter.record.timestamp, letter.record.offset)


def _digest(key: bytes | None, value: bytes | None) -> bytes:
    # The fixed length of the key's digest keeps different pairs apart.
    return sha256(sha256(key or b"").digest() + (value or b"")).digest()


def _event_id_of(value: bytes | None) -> str | None:
    try:
        payload = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    event_id = payload.get("event_id") if isinstance(payload, dict) else None
    return event_id if isinstance(event_id, str) else None
