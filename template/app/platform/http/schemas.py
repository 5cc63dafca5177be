"""Field types of requests and responses; the bodies are defined beside their routes.

Each type is as narrow as its column, so that every valid value can be stored.
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
    """A request body. Unknown fields are errors, because most of them are typing mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponseModel(BaseModel):
    model_config = ConfigDict(from_attributes=True)


def reject_nul(value: str) -> str:
    if "\0" in value:  # PostgreSQL's text cannot hold it
        raise ValueError("must not contain the NUL character")
    return value


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,12})?")


def _require_digits(value: object) -> object:
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError("use digits only, such as 12")
    return value


def require_plain_decimal(value: object) -> object:
    """Reject, for a Decimal field, notations that Python accepts and other languages do not."""
    if isinstance(value, bool) or (isinstance(value, str) and not _DECIMAL.fullmatch(value)):
        raise ValueError('use a decimal number, such as "3.50"')
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it must be within the years 1 to 9999") from None


# For integers in a path or a query, where every value is text. It must follow the bounds in
# `Annotated`, or the OpenAPI document does not show them.
DIGITS = BeforeValidator(_require_digits)
# For integers in a body: a JSON number, neither a string nor a boolean.
Integer = Annotated[int, Field(strict=True)]

Id = Annotated[Integer, Field(ge=1, le=MAX_ID, examples=[1])]
QueryId = Annotated[int, Field(ge=1, le=MAX_ID, examples=[1]), DIGITS]
QueryVersion = Annotated[int, Field(ge=1, le=MAX_VERSION), DIGITS]
# The version after which a page begins; 0 comes before the first version.
AfterVersion = Annotated[int, Field(ge=0, le=MAX_VERSION), DIGITS]
UtcDatetime = Annotated[AwareDatetime, AfterValidator(_to_utc)]


def encode_cursor(id: int) -> str:
    """Encode `id` as a cursor, opaque to clients so that its content may change."""
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Decode an id. Raises ValueError for a string that encode_cursor did not produce."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", validate=True).decode()
        id = int(text.removeprefix(_CURSOR_PREFIX))
    except ValueError:
        id = 0
    if not 1 <= id <= MAX_ID or encode_cursor(id) != cursor:
        raise ValueError("not a cursor: send the next_cursor of the page before, or none")
    return id


Cursor = Annotated[int, BeforeValidator(decode_cursor), WithJsonSchema({"type": "string"})]
