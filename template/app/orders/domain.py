"""Orders: commands decide on events, `evolve` applies them. No I/O, no clock, no generated ids.

The version of an order is the number of events applied to it. Events contain ids, never names or
addresses, so that they can be stored for ever.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from app.platform.errors import DomainError, InvalidTransition


class OrderStatus(StrEnum):
    PLACED = "placed"
    PAID = "paid"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class OrderItem:
    """`quantity` pieces of `sku`; `unit_price` is in the shop's one currency."""

    sku: str
    quantity: int
    unit_price: Decimal

    @property
    def price(self) -> Decimal:
        return self.quantity * self.unit_price


@dataclass(frozen=True)
class OrderPlaced:
    order_id: int
    user_id: int
    items: tuple[OrderItem, ...]


@dataclass(frozen=True)
class OrderPaid:
    order_id: int


@dataclass(frozen=True)
class OrderCancelled:
    order_id: int


OrderEvent = OrderPlaced | OrderPaid | OrderCancelled


@dataclass(frozen=True)
class Order:
    """The state of an order, folded from its events."""

    id: int
    user_id: int
    items: tuple[OrderItem, ...]
    status: OrderStatus
    version: int

    @property
    def total(self) -> Decimal:
        return sum((item.price for item in self.items), Decimal(0))


class EmptyOrder(DomainError):
    """An order has at least one item."""

    def __init__(self) -> None:
        super().__init__("an order needs at least one item")


class TransitionNotAllowed(DomainError):
    """The state of the order forbids the command."""

    def __init__(self, order: Order, action: str, needed: OrderStatus) -> None:
        super().__init__(
            f"order {order.id} is {order.status}: only a {needed} order can be {action}"
        )


def place(order_id: int, user_id: int, items: Sequence[OrderItem]) -> list[OrderEvent]:
    if not items:
        raise EmptyOrder
    return [OrderPlaced(order_id, user_id, tuple(items))]


def pay(order: Order) -> list[OrderEvent]:
    if order.status is not OrderStatus.PLACED:
        raise TransitionNotAllowed(order, "paid", OrderStatus.PLACED)
    return [OrderPaid(order.id)]


def cancel(order: Order) -> list[OrderEvent]:
    if order.status is not OrderStatus.PLACED:
        raise TransitionNotAllowed(order, "cancelled", OrderStatus.PLACED)
    return [OrderCancelled(order.id)]


def evolve(order: Order | None, event: OrderEvent) -> Order:
    """Return the order after `event`. Raises InvalidTransition for an impossible history."""
    match order, event:
        case None, OrderPlaced(order_id, user_id, items):
            return Order(order_id, user_id, items, OrderStatus.PLACED, version=1)
        case Order(), OrderPaid(order_id) if order_id == order.id:
            return replace(order, status=OrderStatus.PAID, version=order.version + 1)
        case Order(), OrderCancelled(order_id) if order_id == order.id:
            return replace(order, status=OrderStatus.CANCELLED, version=order.version + 1)
        case _:
            raise InvalidTransition(f"{event} cannot follow {order}")


def fold(events: Iterable[OrderEvent], order: Order | None = None) -> Order | None:
    """Apply `events` to `order`, one after the other."""
    for event in events:
        order = evolve(order, event)
    return order
