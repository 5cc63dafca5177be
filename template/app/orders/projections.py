"""The projections of orders: their projectors, and the states that they are rebuilt from."""

from collections.abc import Sequence

from app.orders.customer_names import CUSTOMER_NAMES, USER_NAMES, Customer
from app.orders.events import EVENTS, OrderStateEvent
from app.orders.sales import DAILY_SALES
from app.orders.views import ORDER_VIEWS, OrderState
from app.platform.projections.projection import projector
from app.platform.projections.rebuild import AnyProjection, Rebuildable, Source
from app.users.events import UserCreated

_ORDER_EVENTS = [entry.model for entry in EVENTS if issubclass(entry.model, OrderStateEvent)]

SUBSCRIPTIONS = [
    projector(ORDER_VIEWS, _ORDER_EVENTS, OrderState.from_event),
    projector(DAILY_SALES, _ORDER_EVENTS, OrderState.from_event),
    projector(CUSTOMER_NAMES, [UserCreated], Customer.from_event),
]


def rebuilt_from(orders: Source[OrderState]) -> Sequence[AnyProjection]:
    """Return all projections, rebuilt from `orders` and from the table of users."""
    return [
        Rebuildable(ORDER_VIEWS, orders),
        Rebuildable(DAILY_SALES, orders),
        Rebuildable(CUSTOMER_NAMES, USER_NAMES),
    ]
