"""Which projections there are, what each is rebuilt from, and who keeps it up to date."""

from collections.abc import Sequence

from app.cqrs.customer_names import CUSTOMER_NAMES, UserTable
from app.cqrs.daily_sales import DAILY_SALES
from app.cqrs.order_views import ORDER_VIEWS, OrderState
from app.cqrs.projector import project_customer_names, project_daily_sales, project_order_views
from app.cqrs.rebuild import AnyProjection, Rebuildable, Source
from app.events.types import OrderCancelled, OrderCreated, OrderPaid, UserCreated
from app.kafka.subscription import Subscription

SUBSCRIPTIONS = [
    Subscription(
        ORDER_VIEWS.name,
        dict.fromkeys([OrderCreated, OrderPaid, OrderCancelled], project_order_views),
        batch=True,
    ),
    Subscription(
        DAILY_SALES.name,
        dict.fromkeys([OrderCreated, OrderPaid, OrderCancelled], project_daily_sales),
        batch=True,
    ),
    Subscription(CUSTOMER_NAMES.name, {UserCreated: project_customer_names}, batch=True),
]


def rebuilt_from(orders: Source[OrderState]) -> Sequence[AnyProjection]:
    """All projections, rebuilt from `orders` and from the table of users."""
    return [
        Rebuildable(ORDER_VIEWS, orders),
        Rebuildable(DAILY_SALES, orders),
        Rebuildable(CUSTOMER_NAMES, UserTable()),
    ]
