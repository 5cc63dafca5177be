"""Dead letters: reading them, and choosing among those that still count."""

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
from app.platform.kafka.codec import decode, header, header_number, header_time
from app.platform.kafka.errors import UndecodableMessage
from app.platform.kafka.retry import dead_letter_id
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import FailureTopic, dead_letter_topic


class Identity(NamedTuple):
    """A message that failed in a consumer, however often it did.

    A topic that is deleted and made anew counts its offsets from 0 again, so the offset alone does
    not tell two messages apart. A replay changes neither key nor value.
    """

    consumer: str
    origin: str
    partition: int
    offset: int
    timestamp: str
    content: bytes


@dataclass(frozen=True)
class DeadLetter:
    """A message in a dead letter topic, and what its headers tell of its way there."""

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
    discards: str | None  # another's id: that one is given up, and this is no dead letter itself
    discards_timestamp: str | None  # of the record that is given up; None in older services'

    @classmethod
    def of(cls, record: ConsumerRecord) -> "DeadLetter":
        """Missing headers read as empty: what is in the topic can be looked at in any case."""

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
        """The name of this dead letter on the command line: topic:partition:offset."""
        return dead_letter_id(self.record)

    @cached_property
    def identity(self) -> Identity:
        """The message itself, however often it came here."""
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
        """The id under which the inbox would know the event; None when it has none."""
        # The body is what the consumer goes by.
        candidates = [_event_id_of(self.record.value), header(self.record.headers, names.CE_ID)]
        for candidate in candidates:
            try:
                return UUID(candidate or "")
            except ValueError:
                continue
        return None


@dataclass(frozen=True)
class Filter:
    """A choice of dead letters. A field that is None does not restrict; `error_type` ignores case."""

    consumer: str | None = None
    topic: str | None = None
    error_type: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def concerns(self, topic: FailureTopic) -> bool:
        """Whether anything in the topic can match."""
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
    """The dead letter topics in which `only` can find anything."""
    return [
        dead_letter_topic(topic, subscription.name)
        for subscription in subscriptions
        if only.consumer in (None, subscription.name)
        for topic in subscription.topics(registry)
        if only.topic in (None, topic)
    ]


async def read(settings: KafkaSettings, topics: Sequence[str]) -> AsyncGenerator[DeadLetter, None]:
    """All that is in `topics`, which are dead letter topics. Raises BrokerUnavailable."""
    async with reading(settings, topics) as client:
        async for record in read_to_end(client):
            yield DeadLetter.of(record)


def newest(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """The dead letters that count: one a message, and none that was discarded.

    Without this, each replay of what keeps failing would double it.
    """
    found: dict[object, DeadLetter] = {}
    discarded: set[tuple[str, str | None]] = set()
    for letter in letters:
        if letter.discards is not None:
            discarded.add((letter.discards, letter.discards_timestamp))
            continue
        # Without its origin a letter cannot be told from others: each one counts.
        identity = letter.identity if letter.origin else letter.id
        other = found.get(identity)
        if other is None or _age(letter) > _age(other):
            found[identity] = letter
    return [
        letter
        for letter in found.values()
        if discarded.isdisjoint({(letter.id, str(letter.record.timestamp)), (letter.id, None)})
    ]


def is_readable(letter: DeadLetter, registry: EventRegistry) -> bool:
    """Whether this version of the service finds an event in it. Otherwise a replay is in vain."""
    try:
        decode(letter.origin, letter.record.value, registry)
    except UndecodableMessage:
        return False
    return True


def _age(letter: DeadLetter) -> tuple[int, int]:
    # Without a key, a message may come back to another partition: offsets alone tell nothing.
    return (letter.record.timestamp, letter.record.offset)


def _digest(key: bytes | None, value: bytes | None) -> bytes:
    # The digest of the key has one length: no key and value together look like another pair.
    return sha256(sha256(key or b"").digest() + (value or b"")).digest()


def _event_id_of(value: bytes | None) -> str | None:
    try:
        payload = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    event_id = payload.get("event_id") if isinstance(payload, dict) else None
    return event_id if isinstance(event_id, str) else None
