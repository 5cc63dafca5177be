"""The event store: `app event-store …`."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.platform.cli.base import counted, failure, on_database, service_of, unknown
from app.platform.database.engine import Database
from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category
from app.platform.event_store.store import EventStore, ImportRefused, StoredEvent, StreamState
from app.platform.event_store.streams import State, Streams
from app.platform.event_store.verification import BATCH, Verification
from app.platform.terminal import printable, say, say_block

commands = typer.Typer()
group = typer.Typer(help="What happened, event by event.", no_args_is_help=True)
commands.add_typer(group, name="event-store")

StreamId = Annotated[int, typer.Argument(help="As `app event-store streams` prints it.")]
CategoryName = Annotated[
    str | None, typer.Option("--category", help="Of what; needed where there are several.")
]
After = Annotated[int, typer.Option("--after", help="Begin behind this stream.", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="Print at most so many.", min=1)]
Repair = Annotated[bool, typer.Option("--repair", help="Write what differs anew, from the events.")]
Patience = Annotated[
    float, typer.Option("--patience", help="Seconds that a read side may be behind.", min=0)
]


@group.command("streams")
def list_streams(
    ctx: typer.Context, category: CategoryName = None, after: After = 0, limit: Limit = 100
) -> None:
    """Show the streams, with their versions and when they began and last changed."""
    streams = _chosen(ctx, category)

    async def read(database: Database) -> tuple[list[StreamState[State]], int]:
        async with database.sessions() as session:
            store = EventStore(session, streams.category)
            found = await store.load_many(await store.streams(after, limit))
            return found, await store.count()

    found, count = asyncio.run(on_database(read))
    for loaded in found:
        began, changed = (
            moment.isoformat(timespec="seconds") for moment in (loaded.began_at, loaded.changed_at)
        )
        summary = getattr(loaded.state, streams.summary)
        say(f"{loaded.state.id}  version {loaded.version}  {summary}  {began}  {changed}")
    say(counted(count, "stream"))


@group.command()
def show(ctx: typer.Context, id: StreamId, category: CategoryName = None) -> None:
    """Show a stream's events as they are understood today, with who caused them."""
    chosen = _chosen(ctx, category).category

    async def read(database: Database) -> Sequence[StoredEvent[Any]]:
        async with database.sessions() as session:
            return await EventStore(session, chosen).events(id)

    found = asyncio.run(on_database(read))
    if not found:
        raise failure(f"there is no {chosen.name} {id}")
    for stored in found:
        say_block(_whole(chosen, stored))


@group.command()
def verify(
    ctx: typer.Context,
    category: CategoryName = None,
    repair: Repair = False,
    patience: Patience = 5.0,
) -> None:
    """Work out every state from its events, and compare it with what is read; 1 if any differs."""
    streams = _chosen(ctx, category)
    if repair and streams.repair is None:
        raise failure("a read side is not repaired: rebuild its projection")
    count, faults = asyncio.run(
        on_database(lambda d: Verification(d, streams, repair=repair, patience=patience).run())
    )
    left = [fault for fault in faults if not fault.repaired]
    for fault in faults:
        say(f"{fault.id}: {fault.problem}{'; repaired' if fault.repaired else ''}")
    differ = counted(len(faults), "differs", "differ")
    say(f"{counted(count, 'stream')}, {differ}, {len(faults) - len(left)} repaired")
    if left:
        raise typer.Exit(1)


@group.command("import")
def import_rows(ctx: typer.Context, category: CategoryName = None) -> None:
    """Give what is older than the event store the events that led to it.

    For a service that switches the module on; repeat it as you like. No other version of the
    service may change anything of it meanwhile. All is imported, or nothing.
    """
    streams = _chosen(ctx, category)
    name = streams.category.name

    async def work(database: Database) -> int:
        total = 0
        async with database.sessions() as session, session.begin():
            while done := await streams.import_rows(session, BATCH):
                total += done
        return total

    try:
        say(f"{counted(asyncio.run(on_database(work)), name)} imported")
    except ImportRefused as refused:
        raise failure(f"nothing is imported: {refused}") from refused
    except VersionConflict as conflict:
        raise failure(f"something else writes {name}s: {conflict}") from conflict


def _chosen(ctx: typer.Context, name: str | None) -> Streams:
    """The streams of the category `name`, or the service's only ones."""
    there: dict[str, Streams] = {
        streams.category.name: streams for streams in service_of(ctx).streams
    }
    if name is None and len(there) == 1:
        (name,) = there
    if name is None:
        raise failure(f"say which with --category; there are: {', '.join(there) or 'none'}")
    if name not in there:
        raise unknown("category", name, there)
    return there[name]


def _whole(category: Category[Any, Any], stored: StoredEvent[Any]) -> str:
    when = stored.recorded_at.isoformat(timespec="milliseconds")
    told = [printable(f"  {name}: {value}") for name, value in stored.metadata.items()]
    adapter = category.type_of(stored.event).adapter
    data = json.dumps(adapter.dump_python(stored.event, mode="json"), ensure_ascii=False)
    return "\n".join([f"{stored.version}  {when}  {stored.type}", *told, f"  {printable(data)}"])
