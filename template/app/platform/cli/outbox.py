"""The outbox: `app relay`, `app outbox …`."""

import asyncio
import json
from typing import Annotated

import typer

from app.platform.cli.base import counted, failure, on_database
from app.platform.cli.events import one_line
from app.platform.cli.serve import Host, Port, serve_as
from app.platform.database.engine import Database
from app.platform.outbox import monitor, store
from app.platform.outbox.model import HEADER_COLUMNS, ParkedRow
from app.platform.outbox.store import Filter
from app.platform.service import Role
from app.platform.terminal import printable, say, say_block

commands = typer.Typer()


@commands.command()
def relay(ctx: typer.Context, host: Host = None, port: Port = None) -> None:
    """Send the outbox's events to Kafka; health and metrics are served on the port.

    Any number of relays may run: they share the work.
    """
    serve_as(ctx, Role.RELAY, host, port)


group = typer.Typer(help="Events on their way to Kafka.", no_args_is_help=True)
commands.add_typer(group, name="outbox")

Ids = Annotated[list[int] | None, typer.Argument(help="As `app outbox status` prints them.")]
TopicName = Annotated[str | None, typer.Option("--topic", help="Only for this topic.")]
Key = Annotated[str | None, typer.Option("--key", help="Only with this message key.")]
All = Annotated[bool, typer.Option("--all", help="Every parked event.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say which events are meant, and do nothing.")
]


@group.command()
def status(topic: TopicName = None, key: Key = None) -> None:
    """Show how many events wait, since when, and each parked one with its reason."""
    standing, rows = asyncio.run(_status(Filter(topic=topic, key=key)))
    for row in rows:
        say(_line(row))
    say(
        f"{standing.pending} pending, the oldest for {standing.lag_seconds:.0f} s;"
        f" {standing.parked} parked, {standing.held} held behind them"
    )


@group.command()
def show(event: Annotated[int, typer.Argument(help="As `app outbox status` prints it.")]) -> None:
    """Show one parked event: why, its headers, its body."""
    rows = asyncio.run(on_database(lambda database: _find(database, Filter([event]), None)))
    if not rows:
        raise failure(f"no event {event} is parked: `app outbox status` shows those that are")
    say_block(_whole(rows[0]))


@group.command()
def retry(
    ids: Ids = None,
    topic: TopicName = None,
    key: Key = None,
    every: All = False,
    dry_run: DryRun = False,
) -> None:
    """Put parked events back to their places in the outbox, and with them those held behind."""
    meant = _meant(ids, topic, key, every)
    _say("would retry" if dry_run else "retrying", meant)
    if not dry_run:
        count = asyncio.run(on_database(lambda database: store.retry(database.engine, _ids(meant))))
        say(counted(count, "event is on its way again", "events are on their way again"))


@group.command()
def discard(
    ids: Ids = None,
    topic: TopicName = None,
    key: Key = None,
    every: All = False,
    dry_run: DryRun = False,
) -> None:
    """Delete parked events for good; those held behind them go on their way."""
    meant = _meant(ids, topic, key, every)
    _say("would discard" if dry_run else "discarding", meant)
    if not dry_run:
        count = asyncio.run(
            on_database(lambda database: store.discard(database.engine, _ids(meant)))
        )
        say(counted(count, "event is gone", "events are gone"))


def _meant(
    ids: list[int] | None, topic: str | None, key: str | None, every: bool
) -> list[ParkedRow]:
    if not (ids or topic or key or every):
        raise failure("say which events: their ids, --topic, --key or --all")
    only = Filter(ids or (), topic, key)
    rows = asyncio.run(on_database(lambda database: _find(database, only, False)))
    if missing := set(ids or ()) - {row.id for row in rows}:
        numbers = ", ".join(map(str, sorted(missing)))
        raise failure(f"not parked: {numbers}; `app outbox status` shows the events that are")
    return rows


def _ids(rows: list[ParkedRow]) -> list[int]:
    return [row.id for row in rows]


def _say(what: str, rows: list[ParkedRow]) -> None:
    for row in rows:
        say(f"{what} {_line(row)}")


async def _status(only: Filter) -> tuple[monitor.Standing, list[ParkedRow]]:
    async def look(database: Database) -> tuple[monitor.Standing, list[ParkedRow]]:
        return await monitor.standing(database.metrics_probe), await _find(database, only, False)

    return await on_database(look)


async def _find(database: Database, only: Filter, held: bool | None) -> list[ParkedRow]:
    async with database.sessions() as session:
        return await store.find(session, only, held)


def _line(row: ParkedRow) -> str:
    when = row.parked_at.isoformat(timespec="seconds")
    key = row.key.decode("utf-8", "backslashreplace")
    return f"{row.id}  {when}  {row.topic} key={printable(key)}  {one_line(row.reason)}"


def _whole(row: ParkedRow) -> str:
    headers = {name: getattr(row, column) for name, column in HEADER_COLUMNS.items()}
    headers |= row.headers
    told = [f"  {name}: {value}" for name, value in headers.items() if value is not None]
    told = [printable(line) for line in told]
    return "\n".join([_line(row), f"  written {row.created_at.isoformat()}", *told, _body(row)])


def _body(row: ParkedRow) -> str:
    body = json.dumps(json.loads(row.value), indent=2, ensure_ascii=False)
    return "\n".join(f"  {printable(line)}" for line in body.split("\n"))
