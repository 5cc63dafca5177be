"""The bodies of requests and answers. Each field is as narrow as its column, so that what is valid
can be stored.
"""

import base64
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EmailStr,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from app.domain.orders import OrderItem, OrderStatus
from app.models import Profile, User

MAX_ID = 2**63 - 1
_CENT = Decimal("0.01")
_CURSOR_PREFIX = "id:"


class RequestModel(BaseModel):
    """A body. A field that does not exist is an error: it is more often a slip than a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponseModel(BaseModel):
    model_config = ConfigDict(from_attributes=True)


def _without_nul(value: str) -> str:
    if "\0" in value:  # PostgreSQL's text cannot hold it
        raise ValueError("must not contain the NUL character")
    return value


def _in_cents(value: Decimal) -> Decimal:
    return abs(value.quantize(_CENT))  # abs, because there is a negative zero


Id = Annotated[int, Field(ge=1, le=MAX_ID, examples=[1])]
Email = Annotated[
    EmailStr, Field(max_length=320, examples=["ada@example.com"]), AfterValidator(str.lower)
]
Username = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=50, examples=["ada"]),
]
Phone = Annotated[
    str,
    Field(pattern=r"^\+[1-9][0-9]{6,14}$", description="E.164", examples=["+442079460123"]),
]
Title = Annotated[
    str,
    # Before the validator: constraints that follow one are checked on the unstripped text.
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_without_nul),
    Field(examples=["On engines"]),
]
Text = Annotated[
    str,
    StringConstraints(max_length=100_000),
    AfterValidator(_without_nul),
    Field(examples=["They weave algebraic patterns."]),
]
Sku = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, examples=["tea-250g"])
]
Quantity = Annotated[int, Field(ge=1, le=1_000_000, examples=[2])]
Money = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=2, examples=["3.50"]),
    AfterValidator(_in_cents),
]


def encode_cursor(id: int) -> str:
    """Opaque to clients, so that what it stands for may change."""
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """The id that `cursor` stands for. Raises ValueError for what encode_cursor did not make."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", validate=True).decode()
        id = int(text.removeprefix(_CURSOR_PREFIX))
    except ValueError:
        id = 0
    if not 1 <= id <= MAX_ID or encode_cursor(id) != cursor:
        raise ValueError("not a cursor: send the next_cursor of the page before, or none")
    return id


Cursor = Annotated[int, BeforeValidator(decode_cursor), WithJsonSchema({"type": "string"})]


class UserCreate(RequestModel):
    email: Email
    username: Username
    phone: Phone | None = None


class ProfileResponse(ResponseModel):
    created_at: datetime
    posts_published: int


class UserResponse(ResponseModel):
    """`profile` is null until the consumer of `user.created` has made it."""

    id: int
    email: str
    username: str
    phone: str | None
    profile: ProfileResponse | None

    @classmethod
    def of(cls, user: User, profile: Profile | None = None) -> "UserResponse":
        return cls(
            id=user.id,
            email=user.email,
            username=user.username,
            phone=user.phone,
            profile=None if profile is None else ProfileResponse.model_validate(profile),
        )


class PostCreate(RequestModel):
    author_id: Id
    title: Title
    body: Text


class PostResponse(ResponseModel):
    id: int
    author_id: int
    title: str
    body: str


class InventoryResponse(ResponseModel):
    """`reserved` counts what was ordered, as far as the consumer of `order.created` has come."""

    sku: str
    reserved: int


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
