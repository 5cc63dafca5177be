"""The projections of orders: what keeps each up to date, and what it is rebuilt from.

Projectors are handlers that turn events into states, and write those to a projection. They take
batches, because a projection has one writer at a time: a batch is one turn.
"""

from collections.abc import Sequence

from app.orders.customer_names import CUSTOMER_NAMES, Customer, UserTable
from app.orders.events import EVENTS, OrderStateEvent
from app.orders.sales import DAILY_SALES
from app.orders.views import ORDER_VIEWS, OrderState
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription
from app.platform.projections.projection import project
from app.platform.projections.rebuild import AnyProjection, Rebuildable, Source
from app.users.events import UserCreated


async def project_order_views(events: Sequence[OrderStateEvent], uow: UnitOfWork) -> None:
    await project(uow.session, ORDER_VIEWS, [OrderState.of(event) for event in events])


async def project_customer_names(events: Sequence[UserCreated], uow: UnitOfWork) -> None:
    await project(uow.session, CUSTOMER_NAMES, [Customer.of(event) for event in events])


async def project_daily_sales(events: Sequence[OrderStateEvent], uow: UnitOfWork) -> None:
    await project(uow.session, DAILY_SALES, [OrderState.of(event) for event in events])


_ORDER_EVENTS = [entry.model for entry in EVENTS if issubclass(entry.model, OrderStateEvent)]

SUBSCRIPTIONS = [
    Subscription(ORDER_VIEWS.name, dict.fromkeys(_ORDER_EVENTS, project_order_views), batch=True),
    Subscription(DAILY_SALES.name, dict.fromkeys(_ORDER_EVENTS, project_daily_sales), batch=True),
    Subscription(CUSTOMER_NAMES.name, {UserCreated: project_customer_names}, batch=True),
]


def rebuilt_from(orders: Source[OrderState]) -> Sequence[AnyProjection]:
    """All projections, rebuilt from `orders` and from the table of users."""
    return [
        Rebuildable(ORDER_VIEWS, orders),
        Rebuildable(DAILY_SALES, orders),
        Rebuildable(CUSTOMER_NAMES, UserTable()),
    ]
