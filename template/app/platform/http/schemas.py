"""Field types of requests and answers; the bodies lie with their routes. Each field is as narrow as
its column, so that a valid value can be stored.
"""

import base64
import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

MAX_ID = 2**63 - 1
MAX_VERSION = 2**31 - 1
_CURSOR_PREFIX = "id:"


class RequestModel(BaseModel):
    """A body. A field that does not exist is an error: it is more often a slip than a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponseModel(BaseModel):
    model_config = ConfigDict(from_attributes=True)


def without_nul(value: str) -> str:
    if "\0" in value:  # PostgreSQL's text cannot hold it
        raise ValueError("must not contain the NUL character")
    return value


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,12})?")


def _plain_integer(value: object) -> object:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError("use digits only, such as 12")
    return value


def plain_decimal(value: object) -> object:
    """For a Decimal field: refuse what Python takes for a number and other languages do not."""
    if isinstance(value, bool) or (isinstance(value, str) and not _DECIMAL.fullmatch(value)):
        raise ValueError('use a decimal number, such as "3.50"')
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it must be within the years 1 to 9999") from None


# For integers of a path or a query, where everything is text: nothing but digits. It comes after
# the bounds, or the document does not show them.
DIGITS = BeforeValidator(_plain_integer)
# Of a body: a JSON number, and neither a string nor a truth value.
Integer = Annotated[int, Field(strict=True)]

Id = Annotated[Integer, Field(ge=1, le=MAX_ID, examples=[1])]
QueryId = Annotated[int, Field(ge=1, le=MAX_ID, examples=[1]), DIGITS]
QueryVersion = Annotated[int, Field(ge=1, le=MAX_VERSION), DIGITS]
# The version after which a page begins; 0 is before the first one.
AfterVersion = Annotated[int, Field(ge=0, le=MAX_VERSION), DIGITS]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


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
