"""Events: `app events …`."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from aiokafka import ConsumerRecord

from app.commands.context import Context
from app.kafka.reading import follow, reading

commands = typer.Typer()
group = typer.Typer(help="The events on the service's topics.", no_args_is_help=True)
commands.add_typer(group, name="events")


@group.command()
def tail(
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
    context = Context.from_environment()
    topics = topic or [context.registry.topic(entry.model) for entry in context.registry]
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
            typer.echo(show(record))
            seen += 1
            if limit is not None and seen >= limit:
                return
    typer.echo(f"none of these topics exists: {', '.join(topics)}", err=True)
    raise typer.Exit(1)


def show(record: ConsumerRecord) -> str:
    """A message for people: where it is, its key, its headers, its body."""
    when = _time(record.timestamp)
    key = "none" if record.key is None else record.key.decode("utf-8", "backslashreplace")
    lines = [f"{when}  {record.topic}[{record.partition}]@{record.offset}  key={key}"]
    lines += [
        f"  {name}: {(value or b'').decode('utf-8', 'backslashreplace')}"
        for name, value in record.headers
    ]
    lines += [f"  {line}" for line in _body(record.value).splitlines()]
    # JSON may hold lone surrogates, which no terminal can be sent.
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


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
