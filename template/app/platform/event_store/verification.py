"""Comparison of streams with the rows that are read."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.platform.database.engine import Database
from app.platform.errors import InvalidTransition
from app.platform.event_store.category import UnknownEvent
from app.platform.event_store.store import BrokenStream, EventStore, StreamState
from app.platform.event_store.streams import State, Streams, View

BATCH = 500
RECHECK_SECONDS = 0.1
_MAX_ID = 2**63 - 1
UNREADABLE = (BrokenStream, UnknownEvent, InvalidTransition)
"""Errors of a stream from whose events no state can be computed."""


@dataclass(frozen=True)
class Fault:
    """A difference between a stream and its view, or a stream that cannot be read."""

    id: int
    problem: str
    repaired: bool = False


class Verification:
    """Computes every state of `streams` from its events, and compares it with its view.

    A difference counts if it lasts longer than `patience` seconds, as a read model may lag. With
    `repair`, the rows that differ are rewritten.
    """

    def __init__(
        self, database: Database, streams: Streams, *, repair: bool, patience: float
    ) -> None:
        self._sessions = database.sessions
        self._streams = streams
        self._repair = repair
        self._patience = patience

    async def run(self) -> tuple[int, list[Fault]]:
        """Return the number of streams, and the faults."""
        count, last, faults = 0, 0, []
        async for ids, states in self._batches():
            views = await self._streams.views(self._sessions, last, ids[-1] + 1)
            for id in sorted(states.keys() | views.keys()):
                if self._difference(states.get(id), views.get(id)) is not None:
                    faults += await self._fault(id)
            count, last = count + len(ids), ids[-1]
        # Streams that began meanwhile, and rows without events.
        for id in sorted(await self._streams.views(self._sessions, last, _MAX_ID)):
            faults += await self._fault(id)
        return count, faults

    async def _fault(self, id: int) -> list[Fault]:
        problem = await self._lasting_difference(id)
        if problem is None:
            return []
        return [Fault(id, problem, self._repair and await self._repair_stream(id))]

    async def _batches(self) -> AsyncIterator[tuple[list[int], dict[int, State | Exception]]]:
        """Yield the ids of the streams, batch by batch, with the states of those streams."""
        after = 0
        while True:
            async with self._sessions() as session:
                store = EventStore(session, self._streams.category)
                ids = await store.streams(after, BATCH)
                if not ids:
                    return
                found = await load_each(store, ids)
            yield ids, {id: _state(each) for id, each in found.items()}
            after = ids[-1]

    async def _lasting_difference(self, id: int) -> str | None:
        """Return the difference that is still there when the patience has run out."""
        deadline = time.monotonic() + self._patience
        while True:
            async with self._sessions() as session:
                store = EventStore(session, self._streams.category)
                known = await store.events(id, limit=1)
                state = _state((await load_each(store, [id]))[id]) if known else None
            views = await self._streams.views(self._sessions, id - 1, id + 1)
            problem = self._difference(state, views.get(id))
            if problem is None or isinstance(state, Exception) or time.monotonic() >= deadline:
                return problem
            await asyncio.sleep(RECHECK_SECONDS)

    def _difference(self, state: State | Exception | None, view: View | None) -> str | None:
        if isinstance(state, Exception):
            return str(state)
        if state is None:
            return "is read, and has no events" if view is not None else None
        if view is None:
            return "has events, and is not read"
        values = [
            (name, getattr(view, name), getattr(state, name)) for name in self._streams.compared
        ]
        differ = [f"{name} is {a}, its events say {b}" for name, a, b in values if a != b]
        return ", ".join(differ) or None

    async def _repair_stream(self, id: int) -> bool:
        if self._streams.repair is None:
            return False
        async with self._sessions() as session, session.begin():
            try:
                (loaded,) = await EventStore(session, self._streams.category).load_many([id])
            except UNREADABLE:
                return False
            await self._streams.repair(session, loaded)
            return True


async def load_each(
    store: EventStore[Any, State], ids: Sequence[int]
) -> dict[int, StreamState[State] | Exception]:
    """Return the states of streams by id; an error of UNREADABLE for one that cannot be read."""
    try:
        return {each.state.id: each for each in await store.load_many(ids)}
    except UNREADABLE as error:
        if len(ids) == 1:
            return {ids[0]: error}
    return {id: (await load_each(store, [id]))[id] for id in ids}


def _state(found: StreamState[State] | Exception) -> State | Exception:
    return found if isinstance(found, Exception) else found.state
