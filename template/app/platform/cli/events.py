"""Events and their schemas: `app events …`, `app schemas …`, `app asyncapi`."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from app import DESCRIPTION, PROJECT_NAME
from app.platform.cli.base import context_of, counted, failure, service_of, unknown
from app.platform.events import KEPT_SCHEMAS
from app.platform.terminal import say, say_block

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
    from app.platform.cli import event_messages

    context = context_of(ctx)
    of_events = [of_event.name for of_event in context.registry.topics]
    topics = topic or of_events
    known = {*of_events, *(owned.name for owned in context.topics())}
    for name in topics:
        if name not in known:
            raise unknown("topic", name, [*of_events, "those of `app topics list`"])
    try:
        asyncio.run(event_messages.tail(context, topics, from_beginning, limit))
    except KeyboardInterrupt:
        raise typer.Exit from None


@group.command()
def send(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(help="JSON of an event, or a file of tests/contracts; - is standard input."),
    ],
    topic: Annotated[
        str | None, typer.Option(help="Its topic, if several have the event, or it has a decoder.")
    ] = None,
    headers: Annotated[
        list[str] | None,
        typer.Option("--header", help="A header NAME=VALUE, for a topic with a decoder."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="The key, for a topic with a decoder.")] = None,
    keep_id: Annotated[
        bool, typer.Option("--keep-id", help="Keep the event's id and time, to try a duplicate.")
    ] = False,
) -> None:
    """Publish an event, of this service or of another one, to try its handlers.

    The event is checked against its type, and sent in the newest version. It gets a new id and the
    present time, because consumers skip an event that they have applied before. To a topic with a
    decoder, the file is sent as it is.
    """
    from app.platform.cli import event_messages
    from app.platform.kafka.codec import CORRELATION_ID, header

    context = context_of(ctx)
    if topic is not None and event_messages.has_decoder(context, topic):
        sent = event_messages.send_as_it_is(context, topic, file, key, headers or [])
        say(f"sent {sent.event_type} to {topic}: event_id={sent.event_id}")
        return
    if headers or key is not None:
        raise failure("--header and --key are for a topic with a decoder: name it with --topic")
    event, message = event_messages.send_event(context, file, topic, keep_id)
    correlation = header(message.headers, CORRELATION_ID)
    say(
        f"sent {event.event_type} {event.version} to {message.topic}: key={event.key}"
        f" event_id={event.event_id} correlation_id={correlation}"
    )


schemas = typer.Typer(help="The JSON Schemas of the published events.", no_args_is_help=True)
commands.add_typer(schemas, name="schemas")

Folder = Annotated[Path, typer.Argument(help="The folder of the schemas, under version control.")]


@schemas.command("export")
def export_schemas(ctx: typer.Context, folder: Folder = KEPT_SCHEMAS) -> None:
    """Write the schema of each event's newest version, and a sample if there is none.

    A change without a new version is refused, with the version that it needs.
    """
    from app.platform.events.schemas import (
        IncompatibleChange,
        UnreadableFile,
        VersionNotRaised,
        export,
        has_sample,
    )

    _require_folder(folder)
    events = service_of(ctx).events
    try:
        without = [entry for entry in events if not has_sample(entry, folder)]
        written = export(events, folder)
    except (IncompatibleChange, VersionNotRaised, UnreadableFile) as error:
        say_block(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for path in written:
        say(f"wrote {path}")
    for entry in without:
        generated = has_sample(entry, folder)
        hint = "has placeholders: write realistic values" if generated else "is missing: write one"
        say(f'{folder / entry.name}.json: the "sample" of version {entry.version} {hint}')
    count = counted(len(written), "schema")
    say(f"{count} written" if written else "all schemas are exported")


@schemas.command()
def check(ctx: typer.Context, folder: Folder = KEPT_SCHEMAS) -> None:
    """Exit with code 1 if a schema is not exported, or is incompatible with an earlier one."""
    from app.platform.events.schemas import problem_of

    _require_folder(folder)
    problems = [text for entry in service_of(ctx).events if (text := problem_of(entry, folder))]
    for text in problems:
        say_block(f"error: {text}", err=True)
    if problems:
        raise typer.Exit(1)
    say("all schemas are exported and compatible")


def _require_folder(folder: Path) -> None:
    """End the command in another folder than the service's, where nothing is stored yet."""
    if folder == KEPT_SCHEMAS and not Path("app").is_dir():
        raise failure(
            f"{Path.cwd()} has no {KEPT_SCHEMAS}: run this in the service's folder, or name the folder of the"
            " schemas"
        )


@commands.command()
def asyncapi(ctx: typer.Context) -> None:
    """Print the AsyncAPI 3.1 document of the events that are sent and received, as JSON."""
    from app.platform.kafka.asyncapi import document
    from app.platform.service import installed_version

    context = context_of(ctx)
    version = installed_version() or "0"
    info = {"title": PROJECT_NAME, "version": version, "description": DESCRIPTION}
    described = document(info, context.registry, context.subscriptions, context.kafka)
    say_block(json.dumps(described, indent=2, ensure_ascii=False))
