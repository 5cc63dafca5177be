"""The check of events that change: what is accepted is read, and what is refused is named."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal, Union
from uuid import UUID

import pytest
from pydantic import (
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    HttpUrl,
    PlainSerializer,
    StringConstraints,
    Tag,
    ValidationError,
    create_model,
    field_serializer,
)
from random_models import Shape, drawn_pairs, model_of, value
from typer.testing import CliRunner

from app.platform.cli import command_line
from app.platform.events.compatibility import obstacles
from app.platform.events.event import VERSION_PATTERN, BaseEvent, EventType
from app.platform.events.json_schema import ExactJsonSchema
from app.platform.events.keywords import Schema
from app.platform.events.schemas import (
    IncompatibleChange,
    check_compatible,
    export,
    history,
    stored_versions,
)
from app.platform.service import Component, Service

MODES = ("serialization", "validation")
MESSAGES = 6


def schema(model: type[BaseModel], mode: Any = "serialization") -> Schema:
    return model.model_json_schema(schema_generator=ExactJsonSchema, mode=mode)


def messages(random: Random, shape: Shape, model: type[BaseModel]) -> Iterator[str]:
    for _ in range(MESSAGES):
        try:
            yield model.model_validate(value(random, shape)).model_dump_json()
        except ValidationError:
            continue  # beyond the limits of the shape


def test_what_is_accepted_is_read() -> None:
    seen: Counter[str] = Counter()
    for old, new, random in drawn_pairs():
        seen["pairs"] += 1
        reader, writer = model_of(old), model_of(new)
        written = schema(writer)
        if all(obstacles(written, schema(reader, mode)) for mode in MODES):
            continue
        seen["accepted"] += 1
        for message in messages(random, new, writer):
            seen["messages"] += 1
            try:
                reader.model_validate_json(message)
            except ValidationError as error:
                raise AssertionError(f"{message}: {old} -> {new}") from error
    assert seen["pairs"] == 1000
    assert seen["accepted"] >= 250, seen
    assert seen["messages"] >= 500, seen


def test_an_unchanged_model_is_accepted() -> None:
    for old, new, _ in drawn_pairs(100):
        for shape in (old, new):
            first, second = model_of(shape), model_of(shape)
            assert obstacles(schema(first), schema(second)) == []
            assert obstacles(schema(first), schema(second, "validation")) == []


class Price(BaseModel):
    amount: Decimal


class WholePrice(BaseModel):
    amount: int


class Card(BaseModel):
    kind: Literal["card"] = "card"
    digits: str


class LongCard(BaseModel):
    kind: Literal["card"] = "card"
    digits: int


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class More(BaseModel):
    name: str
    nick: str


class Tree(BaseModel):
    name: str
    branches: "dict[str, list[Tree]]"


class WholeTree(BaseModel):
    name: int
    branches: "dict[str, list[WholeTree]]"


class Padded(BaseModel):
    name: str


class Trimmed(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    name: str


class Encoded(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    name: bytes


class Raw(BaseModel):
    name: bytes


class Unclear(BaseModel):
    name: str

    @field_serializer("name")
    def written(self, name):  # type: ignore[no-untyped-def]  # as somebody forgot it
        return len(name)


def kind_of(data: Any) -> str:
    return str(data["kind"])


def told_apart(*tagged: tuple[Any, str]) -> Any:
    members = tuple(Annotated[model, Tag(tag)] for model, tag in tagged)
    return Annotated[Union[members], Discriminator(kind_of)]  # noqa: UP007


TAGGED = told_apart((Padded, "a"), (WholePrice, "b"))
BY_KIND = Field(discriminator="kind")
PAID = Annotated[Card | Cash, BY_KIND]
CHANGES: dict[str, tuple[Any, Any, list[str]]] = {
    "optional": (Price | None, WholePrice | None, ["a.amount: was string (decimal), is integer"]),
    "dict": (dict[str, str], dict[str, int], ["a{}: was string, is integer"]),
    "list of optionals": (
        list[str | None],
        list[int | None],
        ["a[]: was string or null, is integer or null"],
    ),
    "tuple": (tuple[int, str], tuple[int, int], ["a[1]: was string, is integer"]),
    "longer tuple": (tuple[int, str], tuple[int, str, int], ["a: maxItems was 2, is 3"]),
    "list to tuple": (list[int], tuple[int, str], ["a[1]: was integer, is string"]),
    "union grows": (
        int | str,
        int | str | bool,
        ["a: was integer or string, is integer or string or boolean"],
    ),
    "union shrinks": (int | str, int, []),
    "union in another order": (int | str | None, None | str | int, []),
    "recursion": (
        Tree,
        WholeTree,
        ["a.name: was string, is integer", "a.branches{}[].name: was string, is integer"],
    ),
    "values grow": (Literal["a"], Literal["a", "b"], ['a: was "a", is "a" or "b"']),
    "values shrink": (Literal["a", "b"], Literal["a"], []),
    "values of a text": (str, Literal["a", "b"], []),
    "texts of a value": (Literal["a", "b"], str, ['a: was "a" or "b", is string']),
    "values of two literals": (Literal["a"] | Literal[1], Literal["a", 1], []),
    "true is not 1": (Literal[1], Literal[True], ["a: was 1, is true"]),
    "a variant changes": (
        PAID,
        Annotated[LongCard | Cash, BY_KIND],
        ["a.digits: was string, is integer"],
    ),
    "a variant more": (Cash, PAID, ['a.kind: was "cash", is "card"']),
    "variants grow": (
        PAID,
        Annotated[Card | Cash | Closed, Field(union_mode="smart")],
        ["a: was Card or Cash, is Card or Cash or Closed"],
    ),
    "a variant less": (PAID, Cash, []),
    "another field in a closed model": (
        Closed,
        More,
        ["a.nick: is new, and readers allow no other fields"],
    ),
    "format": (UUID, str, ['a: format was "uuid", is not set']),
    "format of nothing": (str, UUID, []),
    "number": (float, Annotated[int, Field(ge=0, le=10)], []),
    "any integer": (float, int, ["a: was number, is integer beyond 2**53"]),
    "bounds": (
        Annotated[int, Field(ge=1)],
        Annotated[int, Field(gt=-1)],
        ["a: minimum was 1, is not set"],
    ),
    "same bounds": (Annotated[int, Field(ge=1)], Annotated[int, Field(gt=0)], []),
    "length": (
        Annotated[str, Field(max_length=3)],
        Annotated[str, Field(max_length=4)],
        ["a: maxLength was 3, is 4"],
    ),
    "pattern": (Annotated[str, Field(pattern="^a")], str, ['a: pattern was "^a", is not set']),
    "multiples": (
        Annotated[int, Field(multiple_of=4)],
        Annotated[int, Field(multiple_of=6)],
        ["a: multipleOf was 4, is 6"],
    ),
    "multiples of more": (
        Annotated[int, Field(multiple_of=2)],
        Annotated[int, Field(multiple_of=6)],
        [],
    ),
    "unique": (set[int], list[int], ["a: uniqueItems was true, is not set"]),
    "keys": (dict[int, int], dict[str, int], ["a{key}: was integer, is string"]),
    "decimal": (Decimal, str, ['a: format was "decimal", is not set']),
    "places": (
        Annotated[Decimal, Field(decimal_places=2)],
        Decimal,
        ["a: x-decimal-places was 2, is not set"],
    ),
    "time zone": (AwareDatetime, datetime, ['a: x-tz-constraint was "aware", is not set']),
    "schemes": (
        HttpUrl,
        AnyUrl,
        [
            "a: maxLength was 2083, is not set",
            'a: x-allowed-schemes was ["http", "https"], is not set',
        ],
    ),
    "not a number": (
        Annotated[float, Field(allow_inf_nan=False)],
        Annotated[float, Field(allow_inf_nan=True)],
        ["a: was number, is number or null"],
    ),
    "not a decimal": (
        Decimal,
        Annotated[Decimal, Field(allow_inf_nan=True)],
        ["a: x-allow-inf-nan was not set, is true"],
    ),
    "always a decimal": (Annotated[Decimal, Field(allow_inf_nan=True)], Decimal, []),
    "spaces in a config": (Trimmed, Padded, ["a.name: x-strip-whitespace was true, is not set"]),
    "bytes": (Raw, Encoded, ['a.name: format was "binary", is "base64url"']),
    "bytes as a text": (
        Annotated[str, Field(max_length=5)],
        Annotated[bytes, Field(max_length=5)],
        ["a: maxLength was 5, is not set"],
    ),
    "tags change": (
        TAGGED,
        told_apart((Padded, "c"), (WholePrice, "b")),
        ["a: was Padded or WholePrice, is Padded or WholePrice"],
    ),
    "tags in another order": (TAGGED, told_apart((WholePrice, "b"), (Padded, "a")), []),
    "a tag less": (TAGGED, told_apart((Padded, "a")), []),
    "a serializer without a type": (Padded, Unclear, ["a.name: was string, is anything"]),
    "a sequence": (Sequence[int], Sequence[str], ["a[]: was integer, is string"]),
    "spaces": (
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
        Annotated[str, Field(min_length=1)],
        ["a: x-strip-whitespace was true, is not set"],
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_named_by_its_path(kind: str) -> None:
    old, new, expected = CHANGES[kind]
    finite = ConfigDict(allow_inf_nan=False)
    reader, writer = (create_model("Event", __config__=finite, a=(of, ...)) for of in (old, new))
    found = obstacles(schema(writer), schema(reader))
    assert [one.as_change_of_writer() for one in found] == expected


class Sold(BaseEvent):
    key_field: ClassVar[str] = "thing_id"
    event_type: Literal["thing.sold"] = "thing.sold"
    thing_id: int
    status: Literal["new", "paid"] = "new"


def minor(**fields: Any) -> type[BaseEvent]:
    version = (str, Field("1.1.0", pattern=VERSION_PATTERN))
    return create_model("Sold", __base__=Sold, version=version, **fields)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (minor(status=(Literal["new"], "new")), 'status: was "new" or "paid", is "new"'),
        (minor(price=(int, ...)), "price: is new, and has no default"),
        (minor(thing_id=(Annotated[int, Field(ge=1)], ...)), "thing_id: minimum was not set, is 1"),
    ],
)
def test_older_messages_have_to_be_read_too(
    tmp_path: Path, changed: type[BaseEvent], text: str
) -> None:
    export([EventType(Sold)], tmp_path)
    with pytest.raises(IncompatibleChange) as refused:
        check_compatible(EventType(changed), tmp_path)
    first, *lines, last = str(refused.value).splitlines()
    assert [first, *lines] == ["thing.sold 1.0.0:", f"  {text} (in older messages)"]
    assert "revert it, or make it version 2.0.0 with an upcaster from version 1" in last


def test_versions_are_compared_with_the_next_one(tmp_path: Path) -> None:
    event = EventType(Sold)
    (file,) = export([event], tmp_path)
    kept = json.loads(file.read_text())[event.version]
    older = json.loads(json.dumps(kept))
    older["schema"]["properties"]["colour"] = {"type": "string"}
    older["schema"]["required"] = [*older["schema"].get("required", ()), "colour"]
    file.write_text(json.dumps({"0.10.0": kept, "0.9.0": older, "0.1.0": {"sample": {}}}))

    first, last = history(event, tmp_path)
    assert (first.old, first.new, first.changes) == ("0.9.0", "0.10.0", ["colour: is gone"])
    assert first.breaking == ["colour: is gone"]
    assert (last.old, last.new, last.changes) == ("0.10.0", f"{event.version} in the code", [])
    assert history(event, tmp_path / "nothing") == []


def test_another_services_event_is_only_read(tmp_path: Path) -> None:
    export([EventType(Sold, service="shop")], tmp_path)
    wider = minor(status=(str | None, None), note=(str, ""))
    check_compatible(EventType(wider, service="shop"), tmp_path)
    narrower = minor(status=(Literal["new"], "new"))
    with pytest.raises(IncompatibleChange, match=r"could not be read: revert it\. If the owner"):
        check_compatible(EventType(narrower, service="shop"), tmp_path)


def test_what_a_serializer_writes_is_left_to_the_sample(tmp_path: Path) -> None:
    text = Annotated[int, PlainSerializer(str, return_type=str)]
    entry = EventType(minor(number=(text, 1)))
    export([entry], tmp_path)
    check_compatible(entry, tmp_path)


def test_bytes_are_read_as_the_config_says() -> None:
    class Decoding(Raw):
        model_config = ConfigDict(val_json_bytes="base64")

    assert obstacles(schema(Raw), schema(Raw, "validation")) == []
    assert obstacles(schema(Encoded), schema(Decoding, "validation")) == []
    assert obstacles(schema(Raw), schema(Decoding, "validation"))


def test_the_command_names_every_event_that_breaks(tmp_path: Path) -> None:
    class Lent(BaseEvent):
        key_field: ClassVar[str] = "thing_id"
        event_type: Literal["thing.lent"] = "thing.lent"
        thing_id: int

    class LentToday(Lent):
        thing_id: str  # type: ignore[assignment]  # as an edit would change it

    def run(command: str, *models: type[BaseEvent]) -> Any:
        service = Service([Component("things", events=[EventType(model) for model in models])])
        return CliRunner().invoke(
            command_line(lambda: service), ["schemas", command, str(tmp_path)]
        )

    assert run("export", Sold, Lent).exit_code == 0
    checked = run("check", minor(status=(str, "new")), LentToday)
    assert checked.exit_code == 1
    assert 'error: thing.sold 1.0.0:\n  status: was "new" or "paid", is string\n' in checked.output
    assert "error: thing.lent 1.0.0:\n  thing_id: was integer, is string\n" in checked.output


def test_a_field_that_is_not_written_as_it_is_read_is_explained(tmp_path: Path) -> None:
    class Scanned(BaseEvent):
        key_field: ClassVar[str] = "parcel"
        event_type: Literal["parcel.scanned"] = "parcel.scanned"
        parcel: str = Field(alias="parcelNo")

    class ScannedAsRead(Scanned):
        model_config = ConfigDict(serialize_by_alias=True)

    entry = EventType(Scanned, service="logistics")
    export([entry], tmp_path)
    with pytest.raises(IncompatibleChange, match="ConfigDict\\(serialize_by_alias=True\\)"):
        check_compatible(entry, tmp_path)

    (tmp_path / "parcel.scanned.json").unlink()
    entry = EventType(ScannedAsRead, service="logistics")
    export([entry], tmp_path)
    check_compatible(entry, tmp_path)
    stored = stored_versions("parcel.scanned", tmp_path)["1.0.0"]
    assert "parcelNo" in stored["schema"]["properties"]
    assert "parcelNo" in stored["sample"]
