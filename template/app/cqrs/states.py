"""What projections are made of: the newest state of a thing, from an event or from the write side."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol, TypeVar

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
