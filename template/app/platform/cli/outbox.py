"""The outbox: `app relay`, `app outbox …`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from app.platform.cli.base import counted, failure, on_database
from app.platform.cli.serve import Host, Port, serve_as
from app.platform.terminal import one_line, printable, say, say_block

if TYPE_CHECKING:  # imported when a command runs, so that its help is quick
    from app.platform.database.engine import Database
    from app.platform.outbox.model import ParkedRow
    from app.platform.outbox.monitor import OutboxStats
    from app.platform.outbox.store import ParkedFilter

commands = typer.Typer()


@commands.command()
def relay(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Send the outbox's events to Kafka; health and metrics are served on the port.

    Any number of relays may run: they share the work.
    """
    from app.platform.service import Role

    serve_as(ctx, Role.RELAY, host, port)


group = typer.Typer(help="Events on their way to Kafka.", no_args_is_help=True)
commands.add_typer(group, name="outbox")

Ids = Annotated[list[int] | None, typer.Argument(help="As `app outbox status` prints them.")]
TopicName = Annotated[str | None, typer.Option("--topic", help="Only for this topic.")]
Key = Annotated[str | None, typer.Option("--key", help="Only with this message key.")]
All = Annotated[bool, typer.Option("--all", help="Every parked event.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")]


@group.command()
def status(topic: TopicName = None, key: Key = None) -> None:
    """Show the number of pending events, their age, and each parked event with its reason."""
    from app.platform.outbox.store import ParkedFilter

    stats, rows = asyncio.run(_status(ParkedFilter(topic=topic, key=key)))
    for row in rows:
        say(_line(row))
    say(
        f"{stats.pending} pending, the oldest for {stats.lag_seconds:.0f} s;"
        f" {stats.parked} parked, {stats.blocked} blocked by them"
    )


@group.command()
def show(event: Annotated[int, typer.Argument(help="As `app outbox status` prints it.")]) -> None:
    """Show one parked event: its reason, headers and body."""
    from app.platform.outbox.store import ParkedFilter

    rows = asyncio.run(on_database(lambda database: _find(database, ParkedFilter([event]), None)))
    if not rows:
        raise failure(f"event {event} is not parked; `app outbox status` lists parked events")
    say_block(_details(rows[0]))


@group.command()
def retry(
    ids: Ids = None,
    topic: TopicName = None,
    key: Key = None,
    every: All = False,
    dry_run: DryRun = False,
) -> None:
    """Move parked events back into the outbox, with the events that they blocked."""
    from app.platform.outbox import store

    rows = _selected(ids, topic, key, every)
    _print("would retry" if dry_run else "retrying", rows)
    if not dry_run:
        count = asyncio.run(on_database(lambda database: store.retry(database.engine, _ids(rows))))
        say(f"moved {counted(count, 'event')} back into the outbox")


@group.command()
def discard(
    ids: Ids = None,
    topic: TopicName = None,
    key: Key = None,
    every: All = False,
    dry_run: DryRun = False,
) -> None:
    """Delete parked events for good, and send the events that they blocked."""
    from app.platform.outbox import store

    rows = _selected(ids, topic, key, every)
    _print("would discard" if dry_run else "discarding", rows)
    if not dry_run:
        count = asyncio.run(
            on_database(lambda database: store.discard(database.engine, _ids(rows)))
        )
        say(f"deleted {counted(count, 'event')}")


def _selected(
    ids: list[int] | None, topic: str | None, key: str | None, every: bool
) -> "list[ParkedRow]":
    from app.platform.outbox import store

    if not (ids or topic or key or every):
        raise failure("no event is selected; give ids, --topic, --key or --all")
    criteria = store.ParkedFilter(ids or (), topic, key)

    async def select(database: "Database") -> "list[ParkedRow]":
        async with database.sessions() as session:
            return await store.select_parked(session, criteria)

    try:
        return asyncio.run(on_database(select))
    except store.NotParked as refusal:
        raise failure(f"{refusal}; `app outbox status` lists parked events") from refusal


def _ids(rows: "list[ParkedRow]") -> list[int]:
    return [row.id for row in rows]


def _print(action: str, rows: "list[ParkedRow]") -> None:
    for row in rows:
        say(f"{action} {_line(row)}")


async def _status(criteria: "ParkedFilter") -> "tuple[OutboxStats, list[ParkedRow]]":
    from app.platform.outbox.monitor import measure

    async def work(database: "Database") -> "tuple[OutboxStats, list[ParkedRow]]":
        stats = await measure(database.metrics_probe)
        return stats, await _find(database, criteria, blocked=False)

    return await on_database(work)


async def _find(
    database: "Database", criteria: "ParkedFilter", blocked: bool | None
) -> "list[ParkedRow]":
    from app.platform.outbox import store

    async with database.sessions() as session:
        return await store.find_parked(session, criteria, blocked)


def _line(row: "ParkedRow") -> str:
    when = row.parked_at.isoformat(timespec="seconds")
    key = row.key.decode("utf-8", "backslashreplace")
    return f"{row.id}  {when}  {row.topic} key={printable(key)}  {one_line(row.reason)}"


def _details(row: "ParkedRow") -> str:
    from app.platform.bodies import format_body

    lines = [f"  {name}: {value}" for name, value in row.all_headers.items()]
    lines += [f"  {line}" for line in format_body(row.value).split("\n")]
    written = f"  written {row.created_at.isoformat()}"
    return "\n".join([_line(row), written, *(printable(line) for line in lines)])
