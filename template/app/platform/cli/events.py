"""Events and their schemas: `app events …`, `app schemas …`, `app asyncapi`."""

import asyncio
import json
import re
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from aiokafka import ConsumerRecord

from app import DESCRIPTION, PROJECT_NAME
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
from app.platform.kafka.admin import follow, reading
from app.platform.kafka.asyncapi import document
from app.platform.kafka.codec import ORIGIN_TIMESTAMP
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
        bool, typer.Option("--from-beginning", help="Show what is there already, too.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Stop after so many messages.", min=1)] = None,
) -> None:
    """Print messages as they come, decoded, with their headers. Moves nobody's offsets."""
    context = context_of(ctx)
    of_events = [context.registry.topic(entry.model) for entry in context.registry]
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
        async for record in follow(client, from_beginning):
            say_block(show(record))
            seen += 1
            if limit is not None and seen >= limit:
                return
    say(f"none of these topics exists: {', '.join(topics)}", err=True)
    raise typer.Exit(1)


def show(record: ConsumerRecord) -> str:
    """A message for people: where it is, its key, its headers, its body."""
    when = _time(record.timestamp)
    key = "none" if record.key is None else record.key.decode("utf-8", "backslashreplace")
    lines = [f"{when}  {record.topic}[{record.partition}]@{record.offset}  key={key}"]
    lines += [f"  {name}: {_header(name, value)}" for name, value in record.headers]
    if body := _body(record.value):
        lines += [f"  {line}" for line in body.split("\n")]
    return "\n".join(printable(line) for line in lines)


def one_line(text: str, length: int = 160) -> str:
    """`text` without line breaks and escapes; what is too long ends with an ellipsis."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _header(name: str, value: bytes | None) -> str:
    text = (value or b"").decode("utf-8", "backslashreplace")
    is_time = name == ORIGIN_TIMESTAMP and re.fullmatch("[0-9]{1,18}", text)
    return _time(int(text)) if is_time else text


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # the sender's clock may say anything
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

Folder = Annotated[Path, typer.Argument(help="Where the schemas are kept, under version control.")]
KEPT = Path("tests/contracts")


@schemas.command("export")
def export_schemas(ctx: typer.Context, folder: Folder = KEPT) -> None:
    """Write the schema of each event's newest version, and a sample if it has none.

    A change that kept its version is refused, with the version that it needs.
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
        made = has_sample(entry, folder)
        todo = "is made up: put values into it that could be sent" if made else "has to be added"
        say(f'{folder / entry.name}.json: "sample" of version {entry.version} {todo}')
    said = f"{counted(len(written), 'schema')} written" if written else "all schemas were exported"
    say(said)


@schemas.command()
def check(ctx: typer.Context, folder: Folder = KEPT) -> None:
    """Exit with code 1 when a schema is not exported, or not compatible with those before."""
    try:
        for entry in service_of(ctx).events:
            check_compatible(entry, folder)
            if not is_exported(entry, folder):
                raise failure(f"{entry.name} {entry.version}: run `app schemas export`")
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
    """That of the installed service, whatever its distribution is called."""
    scripts = entry_points(group="console_scripts", name="app")
    versions = [script.dist.version for script in scripts if script.dist is not None]
    return versions[0] if versions else "0"
