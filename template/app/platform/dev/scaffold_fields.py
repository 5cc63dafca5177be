"""The names and the fields that `app new` takes."""

import builtins
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.platform.database.engine import Base
from app.platform.events.event import BaseEvent

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 40  # of a name: names of constraints and topics are made from it
# Names that a field would hide, in a class or a function that the template writes.
RESERVED = {
    *dir(BaseEvent),
    *BaseEvent.model_fields,
    *dir(Base),
    "id",
    "created_at",
    "confirmed_at",
}
RESERVED |= {"self", "date", "datetime", "func", "mapped_column", *dir(builtins)}


class ScaffoldRefused(Exception):
    """Nothing was written. The message says why, and what to do."""


@dataclass(frozen=True)
class FieldType:
    """A type that a field can have: in Python, in the table, in requests, and a value as JSON."""

    python: str
    column: str
    example: Any
    api: str
    """The type in requests: one that exists, or the name of `definition`."""
    definition: str = ""
    event: str = ""
    """The type in the event, where it is not the one in Python."""


TYPES = {
    "str": FieldType(
        "str",
        "String(200)",
        "some words",
        "Line",
        "Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200),"
        ' AfterValidator(reject_nul), Field(examples=["some words"])]',
    ),
    "text": FieldType(
        "str",
        "Text",
        "Some sentences.",
        "Text",
        "Annotated[str, StringConstraints(max_length=100_000), AfterValidator(reject_nul),"
        ' Field(examples=["Some sentences."])]',
    ),
    "int": FieldType(
        "int",
        "BigInteger",
        7,
        "Number",
        "Annotated[Integer, Field(ge=-(2**63), le=2**63 - 1, examples=[7])]",
    ),
    "decimal": FieldType(
        "Decimal",
        "Numeric(12, 2)",
        "9.99",
        "Amount",
        "Annotated[Decimal, Field(max_digits=12, decimal_places=2, examples=['9.99']),"
        " BeforeValidator(require_plain_decimal)]",
    ),
    "bool": FieldType("bool", "Boolean", True, "Flag", "Annotated[bool, Field(strict=True)]"),
    "datetime": FieldType(
        "datetime",
        "DateTime(timezone=True)",
        "2030-01-31T12:00:00Z",
        "UtcDatetime",
        event="AwareDatetime",
    ),
    "date": FieldType("date", "Date", "2030-01-31", "date"),
    "uuid": FieldType("UUID", "Uuid", "6f1c9a3e-3f0b-4c55-9d3e-0a1b2c3d4e5f", "UUID"),
}


@dataclass(frozen=True)
class Field:
    """A field of an entity, as the template names it."""

    name: str
    type: FieldType
    optional: bool = False

    @classmethod
    def parse(cls, text: str, reserved: Iterable[str] = ()) -> "Field":
        """Read `name:type`, or `name:type?` for an optional one. Raises ScaffoldRefused."""
        name, _, type_name = text.partition(":")
        optional = type_name.endswith("?")
        found = TYPES.get(type_name.removesuffix("?"))
        if found is None:
            raise ScaffoldRefused(
                f"--field {text}: write name:type, or name:type? for an optional one;"
                f" types are {', '.join(TYPES)}"
            )
        return cls(checked_name(name, f"--field {text}", {*RESERVED, *reserved}), found, optional)

    @property
    def python(self) -> str:
        return self._maybe(self.type.python)

    @property
    def event(self) -> str:
        return self._maybe(self.type.event or self.type.python)

    @property
    def api(self) -> str:
        return f"{self.type.api} | None = None" if self.optional else self.type.api

    @property
    def column(self) -> str:
        return self.type.column

    def _maybe(self, python: str) -> str:
        return f"{python} | None" if self.optional else python


def parse_fields(texts: Iterable[str], reserved: Iterable[str]) -> list[Field]:
    """Read fields, each with a name of its own that is none of `reserved`. Raises ScaffoldRefused."""
    fields = [Field.parse(text, reserved) for text in texts]
    names = [field.name for field in fields]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ScaffoldRefused(f"--field {min(twice)} is given twice: name each field once")
    return fields


def checked_name(name: str, place: str, reserved: Iterable[str]) -> str:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ScaffoldRefused(
            f"{place}: use lower-case letters, digits and single underscores, beginning with a"
            f" letter, at most {_LONGEST} characters"
        )
    if keyword.iskeyword(name) or name in reserved:
        raise ScaffoldRefused(
            f"{place}: {name} is reserved, by Python or by the code that is written: choose another name"
        )
    return name
