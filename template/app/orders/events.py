"""The events of orders. They are contracts with other services. Money is a Decimal, in JSON a string.

An incompatible change needs a new version: an upcaster, an exported schema and a golden sample
(tests/contracts).
"""

from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventType, Id

# A message with values that do not fit the database is refused when it is decoded.
Quantity = Annotated[int, Field(ge=1, le=2**31 - 1)]
Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class OrderLine(BaseModel):
    """An item of an order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sku: Sku
    quantity: Quantity
    unit_price: Decimal


# The published schemas of the three events allow each of these. An event that leads to a new status
# declares only that one: `status: Literal["shipped"]`.
PlacedPaidCancelled = Literal["placed", "paid", "cancelled"]


class OrderStateEvent(BaseEvent):
    """The base of all events of orders: the full state after the event, and the order's version.

    A reader keeps the state with the highest `order_version`, and needs no events that it missed.
    Version 1.1.0 has `placed_at`; in messages of 1.0.0 it is null. Each event declares the values
    of `status` in its messages.
    """

    key_field: ClassVar[str] = "order_id"

    version: str = Field("1.1.0", pattern=VERSION_PATTERN)
    order_id: Id
    order_version: int = Field(ge=1, description="Number of changes so far; grows by one")
    user_id: Id
    status: str
    items: tuple[OrderLine, ...]
    total: Decimal
    placed_at: AwareDatetime | None = None


class OrderCreated(OrderStateEvent):
    """An order was placed."""

    event_type: Literal["order.created"] = "order.created"
    status: PlacedPaidCancelled


class OrderPaid(OrderStateEvent):
    """An order was paid."""

    event_type: Literal["order.paid"] = "order.paid"
    status: PlacedPaidCancelled


class OrderCancelled(OrderStateEvent):
    """An order was cancelled."""

    event_type: Literal["order.cancelled"] = "order.cancelled"
    status: PlacedPaidCancelled


EVENTS = [
    EventType(OrderCreated),
    EventType(OrderPaid),
    EventType(OrderCancelled),
]
