"""Events and their schemas: `app events …`, `app schemas …`, `app asyncapi`."""

import asyncio
import json
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from aiokafka import ConsumerRecord

from app import DESCRIPTION, PROJECT_NAME
from app.platform import tracing
from app.platform.cli.base import context_of, counted, failure, service_of, unknown
from app.platform.events.schemas import (
    IncompatibleChange,
    UnreadableFile,
    VersionNotRaised,
    check_compatible,
    export,
    has_sample,
    is_exported,
)
from app.platform.kafka.admin import follow, reading, seek_to
from app.platform.kafka.asyncapi import document
from app.platform.kafka.codec import (
    CE_SOURCE,
    CORRELATION_ID,
    ORIGIN_TIMESTAMP,
    Message,
    decode,
    encode,
    header,
    with_headers,
)
from app.platform.kafka.errors import UndecodableMessage, UnknownTopic
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.topics import missing_foreign
from app.platform.runtime import Context
from app.platform.terminal import printable, say, say_block

commands = typer.Typer()
group = typer.Typer(help="The events on the service's topics.", no_args_is_help=True)
commands.add_typer(group, name="events")


@group.command()
def tail(
    ctx: typer.Context,
    topic: Annotated[
        list[str] | None,
        typer.Argument(help="Topics to follow; all topics of the service's events by default."),
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start with the oldest message.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Stop after this number of messages.", min=1)
    ] = None,
) -> None:
    """Print messages as they arrive, decoded, with their headers. No consumer's offsets change."""
    context = context_of(ctx)
    of_events = [of_event.name for of_event in context.registry.topics]
    topics = topic or of_events
    known = {*of_events, *(owned.name for owned in context.topics())}
    for name in topics:
        if name not in known:
            raise unknown("topic", name, [*of_events, "those of `app topics list`"])
    try:
        asyncio.run(_tail(context, topics, from_beginning, limit))
    except KeyboardInterrupt:
        raise typer.Exit from None


async def _tail(
    context: Context, topics: list[str], from_beginning: bool, limit: int | None
) -> None:
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


@group.command()
def send(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(help="JSON of an event, or a file of tests/contracts; - is standard input."),
    ],
    topic: Annotated[
        str | None, typer.Option(help="Its topic, if several services have an event of this type.")
    ] = None,
    keep_id: Annotated[
        bool, typer.Option("--keep-id", help="Keep the event's id and time, to try a duplicate.")
    ] = False,
) -> None:
    """Publish an event, of this service or of another one, to try its handlers.

    The event is checked against its type, and sent in the newest version. It gets a new id and the
    present time, because consumers skip an event that they have applied before.
    """
    context = context_of(ctx)
    payload = _read_event(file)
    topic = _topic_of(context, payload, topic)
    if not keep_id:
        payload |= {"event_id": str(uuid4()), "timestamp": datetime.now(UTC).isoformat()}
    try:
        event = decode(topic, json.dumps(payload).encode(), context.registry)
    except UndecodableMessage as error:
        raise failure(str(error)) from error
    message = encode(event, context.registry, tracing.current())
    asyncio.run(_send(context, message))
    correlation = header(message.headers, CORRELATION_ID)
    say(
        f"sent {event.event_type} {event.version} to {topic}: key={event.key}"
        f" event_id={event.event_id} correlation_id={correlation}"
    )


def _read_event(file: str) -> dict[str, Any]:
    """Read an event, or the newest sample of a file that `app schemas export` wrote."""
    try:
        found = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        raise failure(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise failure(f"{file} is not valid JSON: {error}") from error
    if isinstance(found, dict) and "event_type" not in found:
        samples = [entry["sample"] for entry in found.values() if "sample" in _mapping(entry)]
        found = samples[-1] if samples else found
    if not isinstance(found, dict) or "event_type" not in found:
        raise failure(f"{file} has no event: write a JSON object with an event_type")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _topic_of(context: Context, payload: dict[str, Any], topic: str | None) -> str:
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


async def _send(context: Context, message: Message) -> None:
    """Send `message` as the service that owns its topic does."""
    owner = context.registry.owner(message.topic)
    if owner is not None:
        headers = with_headers(message.headers, {CE_SOURCE: f"/{owner}"})
        message = message._replace(headers=headers)
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
    lines += [f"  {name}: {_header(name, value)}" for name, value in record.headers]
    if body := _body(record.value):
        lines += [f"  {line}" for line in body.split("\n")]
    return "\n".join(printable(line) for line in lines)


def one_line(text: str, length: int = 160) -> str:
    """Return `text` on one line without escapes, shortened with an ellipsis if it is too long."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _header(name: str, value: bytes | None) -> str:
    text = (value or b"").decode("utf-8", "backslashreplace")
    is_time = name == ORIGIN_TIMESTAMP and re.fullmatch("[0-9]{1,18}", text)
    return _time(int(text)) if is_time else text


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # the sender's clock may be arbitrarily wrong
        return f"timestamp {milliseconds}"


def _body(value: bytes | None) -> str:
    if value is None:
        return "(no value)"
    try:
        return json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return value.decode("utf-8", "backslashreplace")


schemas = typer.Typer(help="The JSON Schemas of the published events.", no_args_is_help=True)
commands.add_typer(schemas, name="schemas")

Folder = Annotated[Path, typer.Argument(help="The folder of the schemas, under version control.")]
KEPT = Path("tests/contracts")


@schemas.command("export")
def export_schemas(ctx: typer.Context, folder: Folder = KEPT) -> None:
    """Write the schema of each event's newest version, and a sample if there is none.

    A change without a new version is refused, with the version that it needs.
    """
    events = service_of(ctx).events
    try:
        without = [entry for entry in events if not has_sample(entry, folder)]
        written = export(events, folder)
    except (IncompatibleChange, VersionNotRaised, UnreadableFile) as error:
        raise failure(str(error)) from error
    for path in written:
        say(f"wrote {path}")
    for entry in without:
        generated = has_sample(entry, folder)
        hint = "has placeholders: write realistic values" if generated else "is missing: write one"
        say(f'{folder / entry.name}.json: the "sample" of version {entry.version} {hint}')
    count = counted(len(written), "schema")
    say(f"{count} written" if written else "all schemas are exported")


@schemas.command()
def check(ctx: typer.Context, folder: Folder = KEPT) -> None:
    """Exit with code 1 if a schema is not exported, or is incompatible with an earlier one."""
    try:
        for entry in service_of(ctx).events:
            check_compatible(entry, folder)
            if not is_exported(entry, folder):
                raise failure(
                    f"{entry.name} {entry.version} is not exported: run `app schemas export`"
                )
    except (IncompatibleChange, VersionNotRaised, UnreadableFile) as error:
        raise failure(str(error)) from error
    say("all schemas are exported and compatible")


@commands.command()
def asyncapi(ctx: typer.Context) -> None:
    """Print the AsyncAPI 3.0 document of the events that are sent and received, as JSON."""
    context = context_of(ctx)
    info = {"title": PROJECT_NAME, "version": _version(), "description": DESCRIPTION}
    described = document(
        info, context.registry, context.subscriptions, context.kafka.kafka_group_id
    )
    say_block(json.dumps(described, indent=2, ensure_ascii=False))


def _version() -> str:
    """Return the version of the installed service, whatever the name of its distribution."""
    scripts = entry_points(group="console_scripts", name="app")
    versions = [script.dist.version for script in scripts if script.dist is not None]
    return versions[0] if versions else "0"
