"""The event store: `app events-store …`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import typer

from app import wiring
from app.config import load
from app.database import Database, DatabaseSettings
from app.domain.orders import EventOutOfPlace, Order, OrderEvent
from app.errors import VersionConflict
from app.event_sourcing.category import UnknownEvent
from app.event_sourcing.orders import ORDERS, import_orders
from app.event_sourcing.store import BrokenStream, EventStore, Loaded, StoredEvent
from app.repositories.orders import OrderFilter, OrderView

T = TypeVar("T")
OrderStore = EventStore[OrderEvent, Order]

commands = typer.Typer()
group = typer.Typer(help="Orders as their events.", no_args_is_help=True)
commands.add_typer(group, name="events-store")

OrderId = Annotated[int, typer.Argument(help="As `app events-store streams` prints it.")]
After = Annotated[int, typer.Option("--after", help="Begin behind this order.", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="Print at most so many.", min=1)]
Repair = Annotated[bool, typer.Option("--repair", help="Write what differs anew, from the events.")]
Patience = Annotated[
    float, typer.Option("--patience", help="Seconds that a read side may be behind.", min=0)
]

BATCH = 500
RECHECK_SECONDS = 0.1


@group.command()
def streams(after: After = 0, limit: Limit = 100) -> None:
    """Show the orders, with their versions and when they were placed and last changed."""

    async def read(database: Database) -> tuple[list[Loaded[Order]], int]:
        async with database.sessions() as session:
            store = EventStore(session, ORDERS)
            found = await store.load_many(await store.streams(after, limit))
            return found, await store.count()

    found, count = asyncio.run(_on_database(read))
    for loaded in found:
        began, changed = (
            moment.isoformat(timespec="seconds") for moment in (loaded.began_at, loaded.changed_at)
        )
        order = loaded.state
        typer.echo(f"{order.id}  version {loaded.version}  {order.status}  {began}  {changed}")
    typer.echo(f"{count} streams")


@group.command()
def show(order_id: OrderId) -> None:
    """Show an order's events as they are understood today, with who caused them."""

    async def read(database: Database) -> Sequence[StoredEvent[OrderEvent]]:
        async with database.sessions() as session:
            return await EventStore(session, ORDERS).events(order_id)

    found = asyncio.run(_on_database(read))
    if not found:
        raise _failure(f"there is no order {order_id}")
    for stored in found:
        typer.echo(_whole(stored))


@group.command()
def verify(repair: Repair = False, patience: Patience = 5.0) -> None:
    """Work out every order from its events, and compare it with what is read; 1 if any differs."""
    if repair and wiring.mend_order is None:
        raise _failure("with a read side: app projections rebuild order-views")
    count, faults = asyncio.run(_on_database(lambda d: _verify(d, repair, patience)))
    left = [fault for fault in faults if not fault.mended]
    for fault in faults:
        typer.echo(f"{fault.order_id}: {fault.what}{'; mended' if fault.mended else ''}")
    typer.echo(f"{count} streams, {len(faults)} differ, {len(faults) - len(left)} mended")
    if left:
        raise typer.Exit(1)


@group.command("import")
def import_rows() -> None:
    """Give orders that are older than the event store the events that led to them.

    For a service that switches the module on; repeat it as you like. No other version of the
    service may change orders meanwhile.
    """

    async def work(database: Database) -> int:
        total = 0
        while True:
            async with database.sessions() as session, session.begin():
                done = await import_orders(session, BATCH)
            if done == 0:
                return total
            total += done

    try:
        typer.echo(f"{asyncio.run(_on_database(work))} orders imported")
    except VersionConflict as conflict:
        raise _failure(f"something else writes orders: {conflict}") from conflict


@dataclass(frozen=True)
class Fault:
    """What is wrong with an order."""

    order_id: int
    what: str
    mended: bool = False


async def _verify(database: Database, repair: bool, patience: float) -> tuple[int, list[Fault]]:
    count, last, faults = 0, 0, []
    async for ids, states in _batches(database):
        rows = await _read(database, last, ids[-1])
        for order_id in sorted(states.keys() | rows.keys()):
            if _difference(states.get(order_id), rows.get(order_id)) is not None:
                faults += await _fault(database, order_id, repair, patience)
        count, last = count + len(ids), ids[-1]
    for order_id in sorted(await _read(database, last, None)):  # placed since, or made up
        faults += await _fault(database, order_id, repair, patience)
    return count, faults


async def _fault(database: Database, order_id: int, repair: bool, patience: float) -> list[Fault]:
    what = await _lasting_difference(database, order_id, patience)
    if what is None:
        return []
    return [Fault(order_id, what, repair and await _mend(database, order_id))]


async def _batches(
    database: Database,
) -> AsyncIterator[tuple[list[int], dict[int, Order | Exception]]]:
    """The ids of the orders, batch by batch, and what their events add up to."""
    after = 0
    while True:
        async with database.sessions() as session:
            store = EventStore(session, ORDERS)
            ids = await store.streams(after, BATCH)
            if not ids:
                return
            try:
                loaded = await store.load_many(ids)
                states: dict[int, Order | Exception] = {
                    each.state.id: each.state for each in loaded
                }
            except (BrokenStream, UnknownEvent, EventOutOfPlace):
                states = {id: await _state(store, id) for id in ids}
        yield ids, states
        after = ids[-1]


async def _state(store: OrderStore, order_id: int) -> Order | Exception:
    try:
        (loaded,) = await store.load_many([order_id])
    except (BrokenStream, UnknownEvent, EventOutOfPlace) as error:
        return error
    return loaded.state


async def _read(database: Database, above: int, up_to: int | None) -> dict[int, OrderView]:
    """What is read of the orders between two ids."""
    queries, before = wiring.order_queries(database.sessions), up_to and up_to + 1
    found: dict[int, OrderView] = {}
    while True:
        page = await queries.page(OrderFilter(), before, BATCH)
        found |= {view.id: view for view in page if view.id > above}
        if len(page) < BATCH or page[-1].id <= above:
            return found
        before = page[-1].id


async def _lasting_difference(database: Database, order_id: int, patience: float) -> str | None:
    """What differs for longer than `patience`: it may have changed between two looks."""
    deadline = time.monotonic() + patience
    while True:
        async with database.sessions() as session:
            store = EventStore(session, ORDERS)
            known = await store.events(order_id, limit=1)
            state = await _state(store, order_id) if known else None
        view = await wiring.order_queries(database.sessions).get(order_id)
        what = _difference(state, view)
        if what is None or isinstance(state, Exception) or time.monotonic() >= deadline:
            return what
        await asyncio.sleep(RECHECK_SECONDS)


def _difference(state: Order | Exception | None, view: OrderView | None) -> str | None:
    if isinstance(state, Exception):
        return str(state)
    if state is None:
        return "is read, and has no events"
    if view is None:
        return "has events, and is not read"
    names = ("user_id", "items", "total", "status", "version")
    differ = [name for name in names if getattr(state, name) != getattr(view, name)]
    told = (f"{n} is {getattr(view, n)}, its events say {getattr(state, n)}" for n in differ)
    return ", ".join(told) or None


async def _mend(database: Database, order_id: int) -> bool:
    if wiring.mend_order is None:
        return False
    async with database.sessions() as session, session.begin():
        try:
            (loaded,) = await EventStore(session, ORDERS).load_many([order_id])
        except (BrokenStream, UnknownEvent, EventOutOfPlace):
            return False
        await wiring.mend_order(session, loaded)
        return True


async def _on_database(work: Callable[[Database], Awaitable[T]]) -> T:
    database = Database(load(DatabaseSettings))
    try:
        return await work(database)
    finally:
        await database.close()


def _whole(stored: StoredEvent[OrderEvent]) -> str:
    when = stored.recorded_at.isoformat(timespec="milliseconds")
    told = [f"  {name}: {value}" for name, value in stored.metadata.items()]
    adapter = ORDERS.type_of(stored.event).adapter
    data = json.dumps(adapter.dump_python(stored.event, mode="json"), ensure_ascii=False)
    return "\n".join([f"{stored.version}  {when}  {stored.type}", *told, f"  {data}"])


def _failure(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)
