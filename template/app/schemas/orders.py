from decimal import Decimal
from typing import Annotated

from pydantic import Field

from app.domain.orders import OrderItem, OrderStatus
from app.schemas.fields import Id, Money, Quantity, RequestModel, ResponseModel, Sku


class OrderItemCreate(RequestModel):
    sku: Sku
    quantity: Quantity
    unit_price: Money


class OrderCreate(RequestModel):
    user_id: Id
    items: Annotated[list[OrderItemCreate], Field(min_length=1, max_length=100)]

    def order_items(self) -> list[OrderItem]:
        return [OrderItem(item.sku, item.quantity, item.unit_price) for item in self.items]


class OrderItemResponse(ResponseModel):
    sku: str
    quantity: int
    unit_price: Annotated[Decimal, Field(examples=["3.50"])]


class OrderResponse(ResponseModel):
    """Money is a decimal number in a string. `version` is what the ETag says, too."""

    id: int
    user_id: int
    items: list[OrderItemResponse]
    total: Annotated[Decimal, Field(examples=["7.00"])]
    status: OrderStatus
    version: int


class OrderPage(ResponseModel):
    """Newest first. `next_cursor` is null on the last page."""

    items: list[OrderResponse]
    next_cursor: str | None
