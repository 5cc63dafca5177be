"""A message as bytes, on its way to Kafka, and the names of the headers that travel with it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

# A header's value may be null in Kafka, as a key or a value may be.
Header = tuple[str, bytes | None]

# CloudEvents 1.0, Kafka protocol binding, binary content mode.
CE_ID = "ce_id"
CE_TYPE = "ce_type"
CE_SOURCE = "ce_source"
CE_TIME = "ce_time"
CE_SPECVERSION = "ce_specversion"
CONTENT_TYPE = "content-type"

TRACEPARENT = "traceparent"
CORRELATION_ID = "correlation-id"
CAUSATION_ID = "causation-id"

# What a failed message carries into delay topics and the dead letter topic.
ORIGIN_TOPIC = "origin-topic"
ORIGIN_PARTITION = "origin-partition"
ORIGIN_OFFSET = "origin-offset"
ORIGIN_TIMESTAMP = "origin-timestamp"
CONSUMER = "consumer"
ATTEMPTS = "attempts"
FIRST_FAILED_AT = "first-failed-at"
LAST_FAILED_AT = "last-failed-at"
ERROR_TYPE = "error-type"
ERROR_MESSAGE = "error-message"
DUE_AT = "due-at"
REPLAYED_AT = "replayed-at"


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes for a topic. Nothing in it is interpreted any more.

    `forwarded` marks a message that Kafka had already accepted once: with the headers that tell
    its story it may exceed the limit for new messages.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    forwarded: bool = False

    @property
    def size(self) -> int:
        """An upper bound of the record's size on the wire, in bytes, before compression."""
        size = len(self.key or b"") + len(self.value or b"") + 100
        for name, value in self.headers:  # a loop, because it is asked for every message
            size += (len(name) if name.isascii() else len(name.encode())) + len(value or b"") + 10
        return size


def header(headers: Iterable[Header], name: str) -> str | None:
    """The last value of header `name` as text, or None. Bytes that are no UTF-8 are replaced."""
    found = None
    for key, value in headers:
        if key == name and value is not None:
            found = value.decode("utf-8", "replace")
    return found


def header_number(headers: Iterable[Header], name: str) -> int:
    """Header `name` as a number; 0 where it is missing or none that a consumer would write."""
    value = header(headers, name) or ""
    # Longer ones are not from here, and int() refuses to read thousands of digits.
    return int(value) if value.isdecimal() and len(value) <= 18 else 0


def header_time(headers: Iterable[Header], name: str) -> datetime | None:
    """Header `name` as an aware time; None where it is missing or is none."""
    try:
        found = datetime.fromisoformat(header(headers, name) or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def with_headers(headers: Iterable[Header], changes: dict[str, str | None]) -> tuple[Header, ...]:
    """`headers` with `changes` in place of what had their names; None removes."""
    kept: list[Header] = [(name, value) for name, value in headers if name not in changes]
    added = [
        (name, value.encode("utf-8", "replace"))
        for name, value in changes.items()
        if value is not None
    ]
    return (*kept, *added)
