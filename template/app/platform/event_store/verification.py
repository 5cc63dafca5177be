"""Are the streams readable, and does what is read of them agree with them?"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from app.platform.database.engine import Database
from app.platform.errors import InvalidTransition
from app.platform.event_store.category import UnknownEvent
from app.platform.event_store.store import BrokenStream, EventStore
from app.platform.event_store.streams import State, Streams, View

BATCH = 500
RECHECK_SECONDS = 0.1


@dataclass(frozen=True)
class Fault:
    """A difference between a stream and its view, or a stream that cannot be read."""

    id: int
    what: str
    repaired: bool = False


class Verification:
    """Works out every state of `streams` from its events, and compares it with what is read.

    A difference counts if it lasts longer than `patience` seconds: a read model may be behind. With
    `repair`, what differs is written anew.
    """

    def __init__(
        self, database: Database, streams: Streams, *, repair: bool, patience: float
    ) -> None:
        self._database = database
        self._streams = streams
        self._repair = repair
        self._patience = patience

    async def run(self) -> tuple[int, list[Fault]]:
        """Return how many streams there are, and what is wrong."""
        count, last, faults = 0, 0, []
        async for ids, states in self._batches():
            views = await self._streams.views(self._database.sessions, last, ids[-1])
            for id in sorted(states.keys() | views.keys()):
                if self._difference(states.get(id), views.get(id)) is not None:
                    faults += await self._fault(id)
            count, last = count + len(ids), ids[-1]
        # Those that are new since, or made up.
        for id in sorted(await self._streams.views(self._database.sessions, last, None)):
            faults += await self._fault(id)
        return count, faults

    async def _fault(self, id: int) -> list[Fault]:
        what = await self._lasting_difference(id)
        if what is None:
            return []
        return [Fault(id, what, self._repair and await self._repair_stream(id))]

    async def _batches(self) -> AsyncIterator[tuple[list[int], dict[int, State | Exception]]]:
        """The ids of the streams, batch by batch, and what their events add up to."""
        after = 0
        while True:
            async with self._database.sessions() as session:
                store = EventStore(session, self._streams.category)
                ids = await store.streams(after, BATCH)
                if not ids:
                    return
                try:
                    loaded = await store.load_many(ids)
                    states: dict[int, State | Exception] = {
                        each.state.id: each.state for each in loaded
                    }
                except (BrokenStream, UnknownEvent, InvalidTransition):
                    states = {id: await _state(store, id) for id in ids}
            yield ids, states
            after = ids[-1]

    async def _lasting_difference(self, id: int) -> str | None:
        """Return the difference that lasts longer than the patience: a read model may be behind."""
        deadline = time.monotonic() + self._patience
        while True:
            async with self._database.sessions() as session:
                store = EventStore(session, self._streams.category)
                known = await store.events(id, limit=1)
                state = await _state(store, id) if known else None
            what = self._difference(state, await self._streams.view(self._database.sessions, id))
            if what is None or isinstance(state, Exception) or time.monotonic() >= deadline:
                return what
            await asyncio.sleep(RECHECK_SECONDS)

    def _difference(self, state: State | Exception | None, view: View | None) -> str | None:
        if isinstance(state, Exception):
            return str(state)
        if state is None:
            return "is read, and has no events"
        if view is None:
            return "has events, and is not read"
        compared = self._streams.compared
        differ = [name for name in compared if getattr(state, name) != getattr(view, name)]
        told = (f"{n} is {getattr(view, n)}, its events say {getattr(state, n)}" for n in differ)
        return ", ".join(told) or None

    async def _repair_stream(self, id: int) -> bool:
        if self._streams.repair is None:
            return False
        async with self._database.sessions() as session, session.begin():
            try:
                (loaded,) = await EventStore(session, self._streams.category).load_many([id])
            except (BrokenStream, UnknownEvent, InvalidTransition):
                return False
            await self._streams.repair(session, loaded)
            return True


async def _state(store: EventStore[Any, State], id: int) -> State | Exception:
    try:
        (loaded,) = await store.load_many([id])
    except (BrokenStream, UnknownEvent, InvalidTransition) as error:
        return error
    return loaded.state
