"""What projections are made of: the newest state of a thing, from an event or from the write side."""

import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Generic, Protocol, TypeVar

from sqlalchemy import MetaData, Table, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.cqrs.models import RebuildRow
from app.domain.orders import OrderItem
from app.events.types import OrderStateEvent, UserCreated


class Versioned(Protocol):
    """A state of the thing `id`. Of two, the one with the higher `version` is the newer."""

    @property
    def id(self) -> int: ...

    @property
    def version(self) -> int: ...


@dataclass(frozen=True)
class OrderState:
    """An order as it was when it had come to `version`, at `updated_at`."""

    id: int
    version: int
    user_id: int
    status: str
    items: tuple[OrderItem, ...]
    total: Decimal
    placed_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, event: OrderStateEvent) -> "OrderState":
        items = tuple(OrderItem(line.sku, line.quantity, line.unit_price) for line in event.items)
        return cls(
            event.order_id,
            event.order_version,
            event.user_id,
            event.status,
            items,
            event.total,
            event.placed_at,
            event.timestamp,
        )


@dataclass(frozen=True)
class Customer:
    """A user's name, which does not change."""

    id: int
    username: str
    version: int = 1

    @classmethod
    def of(cls, event: UserCreated) -> "Customer":
        return cls(event.user_id, event.username)


State = TypeVar("State", bound=Versioned)


def newest(states: Sequence[State]) -> list[State]:
    """The newest of the states of each thing, by id."""
    found: dict[int, State] = {}
    for state in states:
        known = found.get(state.id)
        if known is None or state.version > known.version:
            found[state.id] = state
    return [found[id] for id in sorted(found)]


# The first half of the keys of advisory locks; any numbers will do that nobody else takes.
TURN = 0x43515253
REBUILD = 0x43515254

Write = Callable[[AsyncSession, Sequence[Table], Sequence[State]], Awaitable[None]]


@dataclass(frozen=True)
class Projection(Generic[State]):
    """A read model.

    `write` brings `tables`, or others of their shape, to the given states; it skips those that are
    not newer than what it finds, so states may come twice and in any order. The subscription that
    keeps the tables up to date has the same name.
    """

    name: str
    tables: Sequence[Table]
    write: Write[State]

    @property
    def shadows(self) -> list[Table]:
        """The tables that a rebuild fills. They are there only while it is under way."""
        return [shadow_of(table) for table in self.tables]

    @property
    def lock(self) -> int:
        """The second half of the keys of its advisory locks."""
        return zlib.crc32(self.name.encode()) - 2**31  # they are signed


def shadow_of(table: Table) -> Table:
    return table.to_metadata(MetaData(), name=f"{table.name}_shadow")


async def project(
    session: AsyncSession, projection: Projection[State], states: Sequence[State]
) -> None:
    """Write `states` to the read model, and to what a rebuild is about to put in its place.

    That is all the catching up a rebuild needs. It reads the write side after it has registered,
    so what was projected before, it finds there; what is projected after, is written here. In
    between there is nothing, because registering takes a turn.
    """
    if not states:
        return
    await take_turn(session, projection)
    await projection.write(session, projection.tables, states)
    # A statement of its own, begun with the turn: it sees the registration that the turn waited for.
    if await session.get(RebuildRow, projection.name) is not None:
        await projection.write(session, projection.shadows, states)


async def take_turn(session: AsyncSession, projection: Projection[State]) -> None:
    """Be the only one who writes to `projection`, until the transaction ends."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(:kind, :name)"), {"kind": TURN, "name": projection.lock}
    )
