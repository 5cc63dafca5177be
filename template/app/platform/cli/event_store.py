"""The event store: `app event-store …`."""

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.platform.cli.base import counted, failure, on_database, service_of, unknown
from app.platform.terminal import printable, say, say_block

if TYPE_CHECKING:  # imported when a command runs, so that its help is quick
    from app.platform.database.engine import Database
    from app.platform.event_store.category import Category
    from app.platform.event_store.store import StoredEvent, StreamState
    from app.platform.event_store.streams import State, Streams

commands = typer.Typer()
group = typer.Typer(help="Streams of events: show, verify, import.", no_args_is_help=True)
commands.add_typer(group, name="event-store")

StreamId = Annotated[int, typer.Argument(help="As `app event-store streams` prints it.")]
CategoryName = Annotated[
    str | None,
    typer.Option("--category", help="The category of streams; required if there are several."),
]
After = Annotated[int, typer.Option("--after", help="Start after this stream id.", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="The maximum number to print.", min=1)]
Repair = Annotated[
    bool, typer.Option("--repair", help="Rewrite rows that differ, from the events.")
]
Patience = Annotated[
    float, typer.Option("--patience", help="How long a read side may lag, in seconds.", min=0)
]


@group.command("streams")
def list_streams(
    ctx: typer.Context, category: CategoryName = None, after: After = 0, limit: Limit = 100
) -> None:
    """List the streams, with their versions and the times of their first and last event.

    A stream that cannot be read is listed with the reason.
    """
    from app.platform.event_store.store import EventStore
    from app.platform.event_store.verification import load_each

    streams = _find_streams(ctx, category)

    async def read(database: "Database") -> "tuple[dict[int, StreamState[State] | Exception], int]":
        async with database.sessions() as session:
            store = EventStore(session, streams.category)
            found = await load_each(store, await store.streams(after, limit))
            return found, await store.count()

    found, count = asyncio.run(on_database(read))
    for id, loaded in found.items():
        say(f"{id}  {loaded if isinstance(loaded, Exception) else _summary(streams, loaded)}")
    say(counted(count, "stream"))


@group.command()
def show(ctx: typer.Context, id: StreamId, category: CategoryName = None) -> None:
    """Show the events of a stream in their newest versions, with their metadata."""
    from app.platform.event_store.store import EventStore

    found_category = _find_streams(ctx, category).category

    async def read(database: "Database") -> "Sequence[StoredEvent[Any]]":
        async with database.sessions() as session:
            return await EventStore(session, found_category).events(id)

    found = asyncio.run(on_database(read))
    if not found:
        raise failure(f"there is no {found_category.name} {id}")
    for stored in found:
        say_block(_format_event(found_category, stored))


@group.command()
def verify(
    ctx: typer.Context,
    category: CategoryName = None,
    repair: Repair = False,
    patience: Patience = 5.0,
) -> None:
    """Compute every state from its events and compare it with its row. Exit code 1 if any differs."""
    from app.platform.event_store.verification import Verification

    streams = _find_streams(ctx, category)
    if repair and streams.repair is None:
        raise failure("the rows of a read side cannot be repaired: rebuild its projection")
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
    """Import rows that are older than the event store, as events.

    For a service that switches the module on. It can be repeated. Stop other versions of the
    service first. It imports all rows or none.
    """
    from app.platform.errors import VersionConflict
    from app.platform.event_store.store import ImportRefused
    from app.platform.event_store.verification import BATCH

    streams = _find_streams(ctx, category)
    name = streams.category.name

    async def work(database: "Database") -> int:
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
        raise failure(f"another process writes {name}s: {conflict}") from conflict


def _find_streams(ctx: typer.Context, name: str | None) -> "Streams":
    """Return the streams of the category `name`, or the only ones of the service."""
    by_name: dict[str, Streams] = {
        streams.category.name: streams for streams in service_of(ctx).streams
    }
    if name is None and len(by_name) == 1:
        (name,) = by_name
    if name is None:
        raise failure(f"choose one with --category; there are: {', '.join(by_name) or 'none'}")
    if name not in by_name:
        raise unknown("category", name, by_name)
    return by_name[name]


def _summary(streams: "Streams", loaded: "StreamState[State]") -> str:
    began, changed = (
        moment.isoformat(timespec="seconds") for moment in (loaded.began_at, loaded.changed_at)
    )
    summary = getattr(loaded.state, streams.summary)
    return f"version {loaded.version}  {summary}  {began}  {changed}"


def _format_event(category: "Category[Any, Any]", stored: "StoredEvent[Any]") -> str:
    when = stored.recorded_at.isoformat(timespec="milliseconds")
    metadata = [printable(f"  {name}: {value}") for name, value in stored.metadata.items()]
    adapter = category.type_of(stored.event).adapter
    data = json.dumps(adapter.dump_python(stored.event, mode="json"), ensure_ascii=False)
    return "\n".join(
        [f"{stored.version}  {when}  {stored.type}", *metadata, f"  {printable(data)}"]
    )
