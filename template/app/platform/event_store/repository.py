"""The repository of event-sourced entities: append, recognise duplicates, take snapshots, project."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.errors import VersionConflict
from app.platform.event_store.category import Category, E, S
from app.platform.event_store.causation import current_command, new_events
from app.platform.event_store.store import EventStore, StreamState

Project = Callable[[AsyncSession, Sequence[StreamState[S]]], Awaitable[None]]


@dataclass(frozen=True)
class Saved(StreamState[S]):
    """The state after a command. If it is a `duplicate`, its events were appended the first time,
    and this is the state that it led to then.
    """

    duplicate: bool = False


class EventSourcedRepository(Generic[E, S]):
    """The streams of a category, within a session's transaction.

    `project` writes the rows that are read, in the transaction of the append.
    """

    def __init__(
        self,
        session: AsyncSession,
        category: Category[E, S],
        project: Project[S] | None = None,
    ) -> None:
        self._session = session
        self._category = category
        self._store = EventStore(session, category)
        self._project = project
        # On the session, so that all repositories of one transaction count together.
        self._changes = f"changes of {category.name}"

    async def load(self, stream_id: int) -> StreamState[S] | None:
        """Return the present state, or None if there is no such stream."""
        return await self._store.load(stream_id)

    async def save(
        self,
        stream_id: int,
        state: S,
        events: Sequence[E],
        expected_version: int,
        subject: str | None = None,
    ) -> Saved[S]:
        """Append `events`, which led from `expected_version` (NO_STREAM: a new stream) to `state`.

        Appends nothing for a command that was executed before. A command is recognised by the
        stream that it changes: pass a `subject` where its repetition would get another stream id.
        Raises VersionConflict; then nothing was appended, and the transaction can go on.
        """
        # One command may change one stream several times, with events of different ids.
        subject = subject or str(stream_id)
        changes: Counter[tuple[str | None, str]] = self._session.info.setdefault(
            self._changes, Counter()
        )
        change = (current_command(), subject)
        new = new_events(self._category, f"{subject}-{changes[change]}", events)
        try:
            appended = await self._store.append(stream_id, new, expected_version)
        except VersionConflict:
            previous = await self._find_previous_result(new[-1].event_id)
            if previous is None:
                raise
            changes[change] += 1
            return Saved(**vars(previous), duplicate=True)
        changes[change] += 1
        version = expected_version + len(events)
        saved = Saved(state, version, appended.began_at, appended.recorded_at)
        if self._category.snapshot_is_due(expected_version, version):
            await self._store.save_snapshot(stream_id, saved)
        if self._project is not None:
            await self._project(self._session, [saved])
        return saved

    async def _find_previous_result(self, event_id: UUID) -> StreamState[S] | None:
        """Return the state that this command led to the first time; None for a new command."""
        found = await self._store.find(event_id)
        return None if found is None else await self._store.load(*found)
