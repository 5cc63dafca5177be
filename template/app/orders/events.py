"""The events of orders: what this service tells others about them. Money is Decimal, a string in JSON.

They are contracts: a change that readers could trip over needs a new version, with an upcaster from
the old one, an exported schema and a golden sample of the new one (tests/contracts).
"""

from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventType, Id

# What fits the database. A message beyond it can never be handled, so it is refused when decoded.
Quantity = Annotated[int, Field(ge=1, le=2**31 - 1)]
Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class OrderLine(BaseModel):
    """An item of an order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sku: Sku
    quantity: Quantity
    unit_price: Decimal


# What the published schemas of the three events say, and go on saying. An event that leads to another
# status declares that one alone: `status: Literal["shipped"]`.
PlacedPaidCancelled = Literal["placed", "paid", "cancelled"]


class OrderStateEvent(BaseEvent):
    """The fields of every event of an order: the full state after it, and the order's version.

    Readers keep the state of the highest `order_version` and need no event that they missed.
    Version 1.1.0 has `placed_at`; in messages of 1.0.0 it is null. Each event declares which
    `status` its messages may have.
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
