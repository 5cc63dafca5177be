"""Envelopes: how the messages of a topic wrap their events, and the seam for formats of one's own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha1
from typing import Any, NamedTuple, Protocol, runtime_checkable
from uuid import UUID, SafeUUID

# Another one would change the ids, and so forget what the inbox knows.
_NAMESPACE = sha1(UUID("d3f4b1c6-5a0e-5c1b-9b57-6f5f0e2f8a11").bytes, usedforsecurity=False)
_HEX = "[0-9a-fA-F]"
# Without groups and flags, it takes half the time.
_IS_UUID = re.compile("-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))).fullmatch
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
_UNKNOWN = SafeUUID.unknown  # to look up a member of an enum takes as long as to set an attribute
_new, _set = object.__new__, object.__setattr__


# Each message makes one of these two. A frozen dataclass would take four times as long to make.
@dataclass(slots=True)
class Received:
    """A message as its sender wrote it.

    The topic, the position and the time are those of its first record, which retries and replays do
    not change. `timestamp` is in milliseconds. The value of a header may be None.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes | None]] = ()

    def header(self, name: str) -> str | None:
        """Return the last value of header `name`; None if it is missing or null.

        Raises ValueError if it is not UTF-8.
        """
        found = None
        for key, value in self.headers:
            if key == name and value is not None:
                found = value
        return None if found is None else found.decode()

    def key_text(self) -> str:
        """Return the key as text; empty if there is none. Raises ValueError if it is not UTF-8."""
        return (self.key or b"").decode()


@dataclass(slots=True)
class Envelope:
    """An opened message.

    `body` is the event's JSON object: its bytes, or a dictionary, to which fields are added. `type` is
    compared with those of the topic's events; None means its only one. `id` is unique within `source`,
    which is by default the topic. Without an id, the inbox recognises the message by its position.
    `time` is by default that of the record, and `version` the newest of the event. They replace fields
    of the body that have the names of an event's own: event_id, timestamp, event_type and version.
    `problem` says why the body cannot be read. It counts only if a handler wants the type.
    """

    body: bytes | dict[str, Any] | Any
    type: str | None = None
    id: str | None = None
    source: str | None = None
    time: datetime | str | None = None
    version: str | None = None
    problem: str | None = None


class Description(NamedTuple):
    """Messages in a decoder's format, for the AsyncAPI document. `headers` is a JSON Schema."""

    content_type: str
    headers: dict[str, Any] | None = None
    text: str | None = None


class Decoder(Protocol):
    """Opens the messages of a topic. It is asked for every message, in the order of their lane."""

    def open(self, message: Received) -> Envelope:
        """Return what is in `message`. Any exception makes it a dead letter, with that text."""
        ...


@runtime_checkable
class Described(Protocol):
    """A decoder that can describe its messages, which `app asyncapi` shows. It need not."""

    def describe(self, type: str) -> Description:
        """Describe the messages of `type`."""
        ...


def event_id_of(message: Received, envelope: Envelope) -> tuple[str, int]:
    """Return the id of the event as text, and the mask that `message_id` needs.

    The event's id is that of the envelope if it is a UUID, and otherwise made of source and id, or of
    the position. That alone would return when a topic is deleted and made anew, so the time belongs to
    it.
    """
    id = envelope.id
    if id is None:
        position = f"{message.partition}@{message.offset}@{message.timestamp}"
        return _made_of(f"{message.topic}\n{position}"), 0
    source = envelope.source or message.topic
    if _IS_UUID(id):
        return id, _mask(source)
    return _made_of(f"{source}\n{id}"), 0


def position_id(message: Received) -> UUID:
    """Return the id of a message that nothing but its position identifies."""
    return UUID(event_id_of(message, Envelope(None))[0])


def message_id(event_id: UUID, mask: int) -> UUID:
    """Return the id by which the inbox recognises the message: two sources may use one UUID.

    A hash for each message would cost as much as the rest of the envelope. The UUID is made as pydantic
    makes it: the constructor's checks take longer than all else here.
    """
    if not mask:
        return event_id
    made = _new(UUID)
    _set(made, "int", event_id.int ^ mask)
    _set(made, "is_safe", _UNKNOWN)
    return made


def _digest(text: str) -> str:
    """Return the SHA-1 of the namespace and `text` in hexadecimal."""
    digest = _NAMESPACE.copy()
    digest.update(text.encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _mask(source: str) -> int:
    """Return a number that keeps apart the UUIDs of different sources."""
    return int(_digest(source)[:32], 16)


def _made_of(text: str) -> str:
    """Return the UUID of version 5 for `text`, as text.

    `str(uuid5(…))` takes 2 µs longer, a fifth of the time for a message.
    """
    digits = _digest(text)
    return f"{digits[:12]}5{digits[13:16]}{_VARIANT[digits[16]]}{digits[17:32]}"
