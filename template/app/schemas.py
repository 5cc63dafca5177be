"""What the bodies of requests and answers are made of; the bodies lie with their routes. Each field
is as narrow as its column, so that what is valid can be stored.
"""

import base64
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

MAX_ID = 2**63 - 1
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


Id = Annotated[int, Field(ge=1, le=MAX_ID, examples=[1])]
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
