"""Event-sourced entities: a category of streams, and the rows that are read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.platform.event_store.category import Category
from app.platform.event_store.store import StreamState

State = Any  # of whatever the streams are about; it has an `id`
View = Any  # what is read of it
Repair = Callable[[AsyncSession, StreamState[State]], Awaitable[None]]


class Streams(Protocol):
    """A category, as `app event-store` needs it. A state and its view agree in the fields `compared`."""

    @property
    def category(self) -> Category[Any, State]: ...

    @property
    def compared(self) -> Sequence[str]: ...

    @property
    def repair(self) -> Repair | None:
        """Writes anew what is read; None where that has to be rebuilt instead."""

    def summary(self, state: State) -> str:
        """The state in a word."""

    async def view(self, sessions: async_sessionmaker[AsyncSession], id: int) -> View | None: ...

    async def views(
        self, sessions: async_sessionmaker[AsyncSession], above: int, up_to: int | None
    ) -> Mapping[int, View]:
        """Return the views of the streams between two ids."""

    async def import_rows(self, session: AsyncSession, limit: int) -> int:
        """Give up to `limit` that are rows only the events that led to them; how many.

        Raises ImportRefused where those are not known.
        """
