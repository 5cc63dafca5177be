"""Messages of events for `app events …`: printing, reading from a file, sending."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka import ConsumerRecord

from app.platform import telemetry, tracing
from app.platform.bodies import format_body
from app.platform.cli.base import failure, unknown
from app.platform.events.envelope import Received
from app.platform.events.event import BaseEvent
from app.platform.kafka.admin import follow, reading, seek_to
from app.platform.kafka.codec import (
    CE_SOURCE,
    ERROR_TRACEBACK,
    ORIGIN_TIMESTAMP,
    Message,
    decode,
    encode,
    with_headers,
)
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.errors import UndecodableMessage, UnknownTopic
from app.platform.kafka.excerpts import Place, read_at
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.spans import creating
from app.platform.kafka.topics import missing_foreign
from app.platform.runtime import Context
from app.platform.terminal import printable, say, say_block


async def tail(
    context: Context, topics: list[str], from_beginning: bool, limit: int | None
) -> None:
    """Print messages of `topics` as they arrive, up to `limit` of them."""
    seen = 0
    async with reading(context.kafka, topics) as client:
        existing = sorted({tp.topic for tp in client.assignment()})
        if not existing:
            raise failure(f"none of these topics exists: {', '.join(topics)}")
        await seek_to(client, from_beginning)
        say(f"listening to {', '.join(existing)}; stop with Ctrl-C", err=True)
        async for record in follow(client):
            say_block(show(record))
            seen += 1
            if limit is not None and seen >= limit:
                return


async def show_messages(context: Context, topic: str, place: Place, limit: int) -> None:
    """Print up to `limit` messages of `topic` from `place` on, the oldest first."""
    names = sorted(each.name for each in context.all_topics())
    if topic not in names:
        raise unknown("topic", topic, names)
    async with reading(context.kafka, [topic]) as client:
        records, note = await read_at(client, place, limit)
    for record in records:
        say_block(show(record))
    say(note)


def topics_with_decoder(context: Context) -> list[str]:
    """Return the topics whose messages are in another format than this service's."""
    topics = {context.registry.topic(each.model) for each in context.registry}
    return sorted(topic for topic in topics if has_decoder(context, topic))


def has_decoder(context: Context, topic: str) -> bool:
    """Return whether messages of `topic` are in another format than this service's."""
    events = context.registry.events_on(topic)
    return events is not None and events.decoder is not None


def send_as_it_is(
    context: Context, topic: str, file: str, key: str | None, headers: Sequence[str]
) -> BaseEvent:
    """Send the bytes of `file` if the topic's decoder can read them; return the event in them."""
    if wrong := [text for text in headers if not text.partition("=")[0]]:
        raise failure(f"{wrong[0]!r} is no header: use NAME=VALUE")
    pairs = [text.partition("=") for text in headers]
    message = Message(
        topic,
        None if key is None else key.encode(),
        _read(file),
        tuple((name, value.encode()) for name, _, value in pairs),
    )
    now = int(time.time() * 1000)
    received = Received(topic, 0, 0, now, message.key, message.value or b"", message.headers)
    try:
        decoded = EventDecoder(context.registry).decode_received(received)
    except UndecodableMessage as error:
        raise failure(str(error)) from error
    if decoded is None:
        raise failure(f"{file} is of a type that no event of {topic} has")
    assert isinstance(decoded.event, BaseEvent)  # it has a value, so it is no tombstone
    asyncio.run(_deliver(context, message))
    return decoded.event


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise failure(f"{file} cannot be read: {error.strerror}") from error


def send_event(
    context: Context, file: str, topic: str | None, keep_id: bool
) -> tuple[BaseEvent, Message]:
    """Send the event of `file`, with a new id and time unless told to keep them."""
    payload = _read_own(context, file)
    topic = topic_of(context, payload, topic)
    if has_decoder(context, topic):
        raise failure(f"{topic} has a decoder: send a message in its format with --topic {topic}")
    if not keep_id:
        payload |= {"event_id": str(uuid4()), "timestamp": datetime.now(UTC).isoformat()}
    try:
        event = decode(topic, json.dumps(payload).encode(), context.registry)
    except UndecodableMessage as error:
        raise failure(str(error)) from error
    with telemetry.for_command():
        with creating(event, context.registry):
            message = encode(event, context.registry, tracing.current())
        asyncio.run(send(context, message))
    return event, message


def _read_own(context: Context, file: str) -> dict[str, Any]:
    """Read an event in this service's format."""
    try:
        return read_event(file)
    except NoEvent as error:
        others = topics_with_decoder(context)
        hint = f", or name its topic with --topic {' or '.join(others)}" if others else ""
        raise failure(f"{error}{hint}") from error


class NoEvent(Exception):
    """A file that has no event in this service's format."""


def read_event(file: str) -> dict[str, Any]:
    """Read an event, or the newest sample of a file that `app schemas export` wrote."""
    try:
        found = json.loads(_read(file))
    except ValueError as error:
        raise failure(f"{file} is not valid JSON: {error}") from error
    if isinstance(found, dict) and "event_type" not in found:
        samples = [entry["sample"] for entry in found.values() if "sample" in _mapping(entry)]
        found = samples[-1] if samples else found
    if not isinstance(found, dict) or "event_type" not in found:
        raise NoEvent(f"{file} has no event: write a JSON object with an event_type")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def topic_of(context: Context, payload: dict[str, Any], topic: str | None) -> str:
    """Return the topic of the event. `topic` chooses among those of several services."""
    name = payload["event_type"]
    topics = [context.registry.topic(each.model) for each in context.registry if each.name == name]
    if not topics:
        raise unknown("event", str(name), sorted({each.name for each in context.registry}))
    if topic is not None and topic not in topics:
        raise unknown("topic of this event", topic, topics)
    if topic is None and len(topics) > 1:
        raise failure(
            f"several services have this event: choose with --topic {' or '.join(topics)}"
        )
    return topic or topics[0]


async def send(context: Context, message: Message) -> None:
    """Send `message` as the service that owns its topic does."""
    owner = context.registry.owner(message.topic)
    if owner is not None:
        headers = with_headers(message.headers, {CE_SOURCE: f"/{owner}"})
        message = message._replace(headers=headers)
    await _deliver(context, message)


async def _deliver(context: Context, message: Message) -> None:
    owner = context.registry.owner(message.topic)
    try:
        async with KafkaProducer(context.kafka).running() as producer:
            await producer.send(message)
    except UnknownTopic as error:
        if owner is None:
            raise
        hint = f"{missing_foreign(message.topic, owner)}; `app dev` creates it on its own Kafka"
        raise failure(hint) from error


def show(record: ConsumerRecord) -> str:
    """Format a message for people: its position, key, headers and body."""
    when = _time(record.timestamp)
    key = "none" if record.key is None else record.key.decode("utf-8", "backslashreplace")
    lines = [f"{when}  {record.topic}[{record.partition}]@{record.offset}  key={key}"]
    for name, value in record.headers:
        lines += _header_lines(name, _header(name, value))
    if body := format_body(record.value):
        lines += [f"  {line}" for line in body.split("\n")]
    return "\n".join(printable(line) for line in lines)


def _header_lines(name: str, text: str) -> list[str]:
    """A traceback has a line for each of its own, further in than any header."""
    if name != ERROR_TRACEBACK:
        return [f"  {name}: {text}"]
    return [f"  {name}:", *(f"    {line}" for line in text.rstrip("\n").split("\n"))]


def _header(name: str, value: bytes | None) -> str:
    text = (value or b"").decode("utf-8", "backslashreplace")
    is_time = name == ORIGIN_TIMESTAMP and re.fullmatch("[0-9]{1,18}", text)
    return _time(int(text)) if is_time else text


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # the sender's clock may be arbitrarily wrong
        return f"timestamp {milliseconds}"
