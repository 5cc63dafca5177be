"""The projectors: handlers that turn events into states, and write those to a projection.

They take batches, because a projection has one writer at a time: a batch is one turn.
"""

from collections.abc import Sequence

from app.cqrs.customer_names import CUSTOMER_NAMES, Customer
from app.cqrs.daily_sales import DAILY_SALES
from app.cqrs.order_views import ORDER_VIEWS, OrderState
from app.cqrs.projection import project
from app.events.types import OrderStateEvent, UserCreated
from app.unit_of_work import UnitOfWork


async def project_order_views(events: Sequence[OrderStateEvent], uow: UnitOfWork) -> None:
    await project(uow.session, ORDER_VIEWS, [OrderState.of(event) for event in events])


async def project_customer_names(events: Sequence[UserCreated], uow: UnitOfWork) -> None:
    await project(uow.session, CUSTOMER_NAMES, [Customer.of(event) for event in events])


async def project_daily_sales(events: Sequence[OrderStateEvent], uow: UnitOfWork) -> None:
    await project(uow.session, DAILY_SALES, [OrderState.of(event) for event in events])
