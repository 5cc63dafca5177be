"""Orders and sales of the read side over HTTP."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from app.orders.domain import OrderStatus
from app.orders.router import MinVersion, OrderResponse, VersionWaitSeconds
from app.orders.view_queries import OrderDetailFilter, OrderViewQueries, SalesQueries
from app.platform.errors import Unprocessable
from app.platform.http.dependencies import PathId, RuntimeDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import (
    DIGITS,
    Cursor,
    QueryId,
    ResponseModel,
    encode_cursor,
)
from app.platform.http.versions import etag, wait_for_version
from app.users.router import Username


class OrderViewResponse(OrderResponse):
    """`customer_name` is null until the customer's own event has been consumed. `placed_at` is null
    for old orders whose messages did not contain it."""

    customer_name: Annotated[str | None, Field(examples=["ada"])]
    item_count: Annotated[int, Field(description="Pieces, of all items")]
    placed_at: datetime | None
    updated_at: datetime


class OrderViewPage(ResponseModel):
    """Newest first. `next_cursor` is null on the last page."""

    items: list[OrderViewResponse]
    next_cursor: str | None


class DailySalesResponse(ResponseModel):
    """Money is a decimal number in a string."""

    day: date
    orders: int
    revenue: Annotated[Decimal, Field(examples=["19.00"])]


class DailySalesReport(ResponseModel):
    """Days (UTC) without a sale are left out."""

    days: list[DailySalesResponse]


router = APIRouter(tags=["read side"], responses=responses(422, 500, 503))

_MOST_DAYS = 366


async def get_order_views(runtime: RuntimeDep) -> OrderViewQueries:
    return OrderViewQueries(runtime.database.sessions)


async def get_sales(runtime: RuntimeDep) -> SalesQueries:
    return SalesQueries(runtime.database.sessions)


OrderViewsDep = Annotated[OrderViewQueries, Depends(get_order_views)]
SalesDep = Annotated[SalesQueries, Depends(get_sales)]


@router.get(
    "/order-views/{order_id}",
    summary="Get an order with its customer's name",
    responses=responses(404) | with_headers(200, ETag="The order's version"),
)
async def get_order_view(
    order_id: PathId,
    views: OrderViewsDep,
    wait_seconds: VersionWaitSeconds,
    response: Response,
    min_version: MinVersion = None,
) -> OrderViewResponse:
    """`min_version` is waited for, as at `/orders/{order_id}`."""
    found = await wait_for_version(
        lambda: views.get(order_id),
        lambda order: order.version,
        min_version,
        "order",
        order_id,
        wait_seconds,
    )
    response.headers["ETag"] = etag(found.version)
    return OrderViewResponse.model_validate(found)


@router.get("/order-views", summary="List orders with their customers' names, newest first")
async def list_order_views(
    views: OrderViewsDep,
    user_id: Annotated[QueryId | None, Query()] = None,
    customer_name: Annotated[Username | None, Query()] = None,
    status: OrderStatus | None = None,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Field(ge=1, le=100), DIGITS, Query()] = 20,
) -> OrderViewPage:
    """Pages stay in place while new orders come in."""
    order_filter = OrderDetailFilter(user_id, status, customer_name)
    found = await views.find(order_filter, before=cursor, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    return OrderViewPage(
        items=[OrderViewResponse.model_validate(order) for order in page],
        next_cursor=encode_cursor(page[-1].id) if more else None,
    )


@router.get("/sales/daily", summary="List the daily sales")
async def list_daily_sales(
    sales: SalesDep,
    first: Annotated[date | None, Query(description="30 days before `last` unless given")] = None,
    last: Annotated[date | None, Query(description="Today (UTC) unless given")] = None,
) -> DailySalesReport:
    """Days are those of UTC."""
    end = last or datetime.now(UTC).date()
    begin = first or max(end, date.min + timedelta(days=30)) - timedelta(days=30)
    if not timedelta(0) <= end - begin <= timedelta(days=_MOST_DAYS):
        raise Unprocessable(
            f"first must not be after last, nor more than {_MOST_DAYS} days before it",
            pointer="/first",
            location="query",
        )
    days = await sales.daily(begin, end)
    return DailySalesReport(days=[DailySalesResponse.model_validate(day) for day in days])
