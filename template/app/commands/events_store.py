"""The event store: `app events-store …`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import typer
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app import wiring
from app.commands import counted, failure, on_database
from app.database import Database
from app.domain import EventOutOfPlace
from app.errors import VersionConflict
from app.event_sourcing.category import Category, UnknownEvent
from app.event_sourcing.store import (
    BrokenStream,
    EventStore,
    ImportRefused,
    Loaded,
    StoredEvent,
)
from app.terminal import printable, say, say_block

State = Any  # of whatever the streams are about; it has an `id`
View = Any  # what is read of it
Mend = Callable[[AsyncSession, Loaded[State]], Awaitable[None]]


class Streams(Protocol):
    """What the commands ask of a category. A state and what is read of it agree in `compared`."""

    @property
    def category(self) -> Category[Any, State]: ...

    @property
    def compared(self) -> Sequence[str]: ...

    @property
    def mend(self) -> Mend | None:
        """Writes anew what is read; None where that has to be rebuilt instead."""

    def told(self, state: State) -> str:
        """The state in a word."""

    async def view(self, sessions: async_sessionmaker[AsyncSession], id: int) -> View | None: ...

    async def views(
        self, sessions: async_sessionmaker[AsyncSession], above: int, up_to: int | None
    ) -> Mapping[int, View]:
        """What is read of those between two ids."""

    async def import_rows(self, session: AsyncSession, limit: int) -> int:
        """Give up to `limit` that are rows only the events that led to them; how many.

        Raises ImportRefused where those are not known.
        """


STREAMS: Streams = wiring.streams
CATEGORY = STREAMS.category

commands = typer.Typer()
group = typer.Typer(help="What happened, event by event.", no_args_is_help=True)
commands.add_typer(group, name="events-store")

StreamId = Annotated[int, typer.Argument(help="As `app events-store streams` prints it.")]
After = Annotated[int, typer.Option("--after", help="Begin behind this stream.", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="Print at most so many.", min=1)]
Repair = Annotated[bool, typer.Option("--repair", help="Write what differs anew, from the events.")]
Patience = Annotated[
    float, typer.Option("--patience", help="Seconds that a read side may be behind.", min=0)
]

BATCH = 500
RECHECK_SECONDS = 0.1


@group.command()
def streams(after: After = 0, limit: Limit = 100) -> None:
    """Show the streams, with their versions and when they began and last changed."""

    async def read(database: Database) -> tuple[list[Loaded[State]], int]:
        async with database.sessions() as session:
            store = EventStore(session, CATEGORY)
            found = await store.load_many(await store.streams(after, limit))
            return found, await store.count()

    found, count = asyncio.run(on_database(read))
    for loaded in found:
        began, changed = (
            moment.isoformat(timespec="seconds") for moment in (loaded.began_at, loaded.changed_at)
        )
        said = STREAMS.told(loaded.state)
        say(f"{loaded.state.id}  version {loaded.version}  {said}  {began}  {changed}")
    say(counted(count, "stream"))


@group.command()
def show(id: StreamId) -> None:
    """Show a stream's events as they are understood today, with who caused them."""

    async def read(database: Database) -> Sequence[StoredEvent[Any]]:
        async with database.sessions() as session:
            return await EventStore(session, CATEGORY).events(id)

    found = asyncio.run(on_database(read))
    if not found:
        raise failure(f"there is no {CATEGORY.name} {id}")
    for stored in found:
        say_block(_whole(stored))


@group.command()
def verify(repair: Repair = False, patience: Patience = 5.0) -> None:
    """Work out every state from its events, and compare it with what is read; 1 if any differs."""
    if repair and STREAMS.mend is None:
        raise failure("a read side is not mended, but filled anew: app projections rebuild")
    count, faults = asyncio.run(on_database(lambda d: _verify(d, repair, patience)))
    left = [fault for fault in faults if not fault.mended]
    for fault in faults:
        say(f"{fault.id}: {fault.what}{'; mended' if fault.mended else ''}")
    differ = counted(len(faults), "differs", "differ")
    say(f"{counted(count, 'stream')}, {differ}, {len(faults) - len(left)} mended")
    if left:
        raise typer.Exit(1)


@group.command("import")
def import_rows() -> None:
    """Give what is older than the event store the events that led to it.

    For a service that switches the module on; repeat it as you like. No other version of the
    service may change anything of it meanwhile. All is imported, or nothing.
    """

    async def work(database: Database) -> int:
        total = 0
        async with database.sessions() as session, session.begin():
            while done := await STREAMS.import_rows(session, BATCH):
                total += done
        return total

    try:
        say(f"{counted(asyncio.run(on_database(work)), CATEGORY.name)} imported")
    except ImportRefused as refused:
        raise failure(f"nothing is imported: {refused}") from refused
    except VersionConflict as conflict:
        raise failure(f"something else writes {CATEGORY.name}s: {conflict}") from conflict


@dataclass(frozen=True)
class Fault:
    """What is wrong with a stream, or with what is read of it."""

    id: int
    what: str
    mended: bool = False


async def _verify(database: Database, repair: bool, patience: float) -> tuple[int, list[Fault]]:
    count, last, faults = 0, 0, []
    async for ids, states in _batches(database):
        views = await STREAMS.views(database.sessions, last, ids[-1])
        for id in sorted(states.keys() | views.keys()):
            if _difference(states.get(id), views.get(id)) is not None:
                faults += await _fault(database, id, repair, patience)
        count, last = count + len(ids), ids[-1]
    for id in sorted(await STREAMS.views(database.sessions, last, None)):  # new since, or made up
        faults += await _fault(database, id, repair, patience)
    return count, faults


async def _fault(database: Database, id: int, repair: bool, patience: float) -> list[Fault]:
    what = await _lasting_difference(database, id, patience)
    if what is None:
        return []
    return [Fault(id, what, repair and await _mend(database, id))]


async def _batches(
    database: Database,
) -> AsyncIterator[tuple[list[int], dict[int, State | Exception]]]:
    """The ids of the streams, batch by batch, and what their events add up to."""
    after = 0
    while True:
        async with database.sessions() as session:
            store = EventStore(session, CATEGORY)
            ids = await store.streams(after, BATCH)
            if not ids:
                return
            try:
                loaded = await store.load_many(ids)
                states: dict[int, State | Exception] = {
                    each.state.id: each.state for each in loaded
                }
            except (BrokenStream, UnknownEvent, EventOutOfPlace):
                states = {id: await _state(store, id) for id in ids}
        yield ids, states
        after = ids[-1]


async def _state(store: EventStore[Any, State], id: int) -> State | Exception:
    try:
        (loaded,) = await store.load_many([id])
    except (BrokenStream, UnknownEvent, EventOutOfPlace) as error:
        return error
    return loaded.state


async def _lasting_difference(database: Database, id: int, patience: float) -> str | None:
    """What differs for longer than `patience`: it may have changed between two looks."""
    deadline = time.monotonic() + patience
    while True:
        async with database.sessions() as session:
            store = EventStore(session, CATEGORY)
            known = await store.events(id, limit=1)
            state = await _state(store, id) if known else None
        what = _difference(state, await STREAMS.view(database.sessions, id))
        if what is None or isinstance(state, Exception) or time.monotonic() >= deadline:
            return what
        await asyncio.sleep(RECHECK_SECONDS)


def _difference(state: State | Exception | None, view: View | None) -> str | None:
    if isinstance(state, Exception):
        return str(state)
    if state is None:
        return "is read, and has no events"
    if view is None:
        return "has events, and is not read"
    differ = [name for name in STREAMS.compared if getattr(state, name) != getattr(view, name)]
    told = (f"{n} is {getattr(view, n)}, its events say {getattr(state, n)}" for n in differ)
    return ", ".join(told) or None


async def _mend(database: Database, id: int) -> bool:
    if STREAMS.mend is None:
        return False
    async with database.sessions() as session, session.begin():
        try:
            (loaded,) = await EventStore(session, CATEGORY).load_many([id])
        except (BrokenStream, UnknownEvent, EventOutOfPlace):
            return False
        await STREAMS.mend(session, loaded)
        return True


def _whole(stored: StoredEvent[Any]) -> str:
    when = stored.recorded_at.isoformat(timespec="milliseconds")
    told = [printable(f"  {name}: {value}") for name, value in stored.metadata.items()]
    adapter = CATEGORY.type_of(stored.event).adapter
    data = json.dumps(adapter.dump_python(stored.event, mode="json"), ensure_ascii=False)
    return "\n".join([f"{stored.version}  {when}  {stored.type}", *told, f"  {printable(data)}"])
