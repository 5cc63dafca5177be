from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from app.schemas import OrderResponse, ResponseModel


class OrderViewResponse(OrderResponse):
    """`customer_name` is null for a moment where an order is known before its customer is.
    `placed_at` is null for old orders of which only messages without it were seen."""

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
