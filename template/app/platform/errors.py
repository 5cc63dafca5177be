"""Errors that callers are told. `http/problems.py` makes them answers."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field

_MAX_POINTER = 80
_MAX_FIELD_DETAIL = 160


class DomainError(Exception):
    """A rule of the business forbids it in the present state. The message says which, for the caller."""


class InvalidTransition(Exception):
    """The stored history is broken: this event cannot follow what came before it."""


class FieldProblem(BaseModel):
    """An error in one part of the request."""

    location: str = Field(examples=["body"], description="body, path, query or header")
    pointer: str = Field(examples=["/items/0/quantity"], description="JSON Pointer within location")
    detail: str = Field(examples=["Input should be greater than or equal to 1"])

    @classmethod
    def of(cls, place: Sequence[str | int], detail: str) -> "FieldProblem":
        location, *path = place
        pointer = "".join(f"/{_escaped(str(part))}" for part in path)
        return cls(
            location=str(location),
            pointer=shortened(pointer, _MAX_POINTER),
            detail=shortened(detail, _MAX_FIELD_DETAIL),
        )

    @property
    def place(self) -> str:
        return f"{self.location} {self.pointer}" if self.pointer else self.location


def shortened(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def _escaped(part: str) -> str:
    """`part` as a reference token of a JSON Pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


RETRY_AFTER_SECONDS = 1


class ServiceError(Exception):
    """An error that callers are told. The message is the problem's `detail`, the class its `type`."""

    status: ClassVar[int]
    title: ClassVar[str]

    @property
    def headers(self) -> dict[str, str]:
        return {}


class NotFound(ServiceError):
    status = 404
    title = "There is no such thing"

    def __init__(self, what: str, id: object) -> None:
        super().__init__(f"there is no {what} {id}")


class Conflict(ServiceError):
    """The request contradicts what is there."""

    status = 409
    title = "The request contradicts the present state"


class VersionConflict(ServiceError):
    """Somebody else changed the thing first."""

    status = 412
    title = "The thing has changed meanwhile"

    def __init__(self, what: str, id: object) -> None:
        super().__init__(
            f"{what} {id} is not at the expected version: get it again, and send its ETag in If-Match"
        )


class Unprocessable(ServiceError):
    """The request is well formed and makes no sense."""

    status = 422
    title = "The request is not valid"

    def __init__(self, detail: str, pointer: str | None = None, location: str = "body") -> None:
        super().__init__(detail)
        self.fields = (
            []
            if pointer is None
            else [FieldProblem(location=location, pointer=pointer, detail=detail)]
        )


class PreconditionRequired(ServiceError):
    status = 428
    title = "The request must say which version it is meant for"


class Unavailable(ServiceError):
    """It may work later."""

    status = 503
    title = "The service cannot answer at the moment"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
