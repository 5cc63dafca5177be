"""Errors that are reported to callers. `http/problems.py` renders them as problem details."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

RETRY_AFTER_SECONDS = 1
_MAX_POINTER = 80
_MAX_FIELD_DETAIL = 160


class DomainError(Exception):
    """A business rule forbids the command in the present state. The message tells the caller why.

    `problem_type` as for a ServiceError.
    """

    problem_type: ClassVar[str | None] = None


class InvalidTransition(Exception):
    """The stored history is broken: the event cannot follow those before it."""


class DuplicateCommand(Exception):
    """The command was executed before. `result` is what it returned the first time."""

    def __init__(self, result: Any) -> None:
        super().__init__("the command was executed before")
        self.result = result


class FieldProblem(BaseModel):
    """An error in one part of the request."""

    location: str = Field(examples=["body"], description="body, path, query or header")
    pointer: str = Field(examples=["/items/0/quantity"], description="JSON Pointer within location")
    detail: str = Field(examples=["Input should be greater than or equal to 1"])

    @classmethod
    def of(cls, location_and_path: Sequence[str | int], detail: str) -> "FieldProblem":
        """Build it from a location as pydantic reports it, such as `("body", "items", 0)`."""
        location, *path = location_and_path
        pointer = "".join(f"/{_escape_token(str(part))}" for part in path)
        return cls(
            location=str(location),
            pointer=truncate(pointer, _MAX_POINTER),
            detail=truncate(detail, _MAX_FIELD_DETAIL),
        )

    def __str__(self) -> str:
        place = f"{self.location} {self.pointer}" if self.pointer else self.location
        return f"{place}: {self.detail}"


def truncate(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def _escape_token(token: str) -> str:
    """Escape a reference token of a JSON Pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")


class ServiceError(Exception):
    """An error that is reported to the caller, with the message as the problem's `detail`.

    `problem_type` is part of the HTTP contract. It defaults to the name of the class: set it when
    you rename a class.
    """

    status: ClassVar[int]
    title: ClassVar[str]
    problem_type: ClassVar[str | None] = None

    @property
    def headers(self) -> dict[str, str]:
        return {}


class NotFound(ServiceError):
    status = 404
    title = "There is no such resource"

    def __init__(self, kind: str, id: object) -> None:
        super().__init__(f"there is no {kind} {id}")


class Conflict(ServiceError):
    """The request contradicts the present state."""

    status = 409
    title = "The request contradicts the present state"


class VersionConflict(ServiceError):
    """The resource is not at the version that the caller expects."""

    status = 412
    title = "The resource has changed meanwhile"

    def __init__(self, kind: str, id: object) -> None:
        super().__init__(
            f"{kind} {id} is not at the expected version: get it again, and send its ETag in If-Match"
        )


class Unprocessable(ServiceError):
    """The request is well formed but not valid."""

    status = 422
    title = "The request is not valid"

    def __init__(self, detail: str, pointer: str | None = None, location: str = "body") -> None:
        super().__init__(detail)
        self.fields = (
            []
            if pointer is None
            else [FieldProblem(location=location, pointer=pointer, detail=detail)]
        )


class IdempotencyKeyReused(Unprocessable):
    title = "This Idempotency-Key belongs to another request"

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was sent before with another body: use a new one",
            pointer="/Idempotency-Key",
            location="header",
        )


class PreconditionRequired(ServiceError):
    status = 428
    title = "The request must say which version it is meant for"


class Unavailable(ServiceError):
    """The service cannot do it now; a later attempt may succeed."""

    status = 503
    title = "The service cannot answer at the moment"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
