"""Kinds of fields. Each is as narrow as its column, so that what is valid can be stored."""

import base64
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
