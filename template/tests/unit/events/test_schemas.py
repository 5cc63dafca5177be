from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel, Field

from app import wiring
from app.events.schemas import (
    IncompatibleChange,
    breaking_changes,
    check_compatible,
    export,
    is_exported,
    schema_of,
)
from app.kafka.event import VERSION_PATTERN, BaseEvent, EventType
from tests.unit.events.samples import SCHEMAS


@pytest.mark.parametrize("entry", wiring.EVENTS, ids=lambda entry: entry.name)
def test_the_schema_is_exported(entry: EventType) -> None:
    assert is_exported(entry, SCHEMAS), f"{entry.name} changed: run `app schemas export`"


@pytest.mark.parametrize("entry", wiring.EVENTS, ids=lambda entry: entry.name)
def test_no_event_changed_incompatibly_within_its_major_version(entry: EventType) -> None:
    check_compatible(entry, SCHEMAS)


class Line(BaseModel):
    sku: str
    amount: Decimal


class Sold(BaseEvent):
    key_field: ClassVar[str] = "id"
    event_type: Literal["thing.sold"] = "thing.sold"
    id: int
    note: str | None
    lines: tuple[Line, ...]


class LineWithUnit(Line):
    unit: str = "piece"


class SoldWithMore(Sold):
    version: str = Field("1.1.0", pattern=VERSION_PATTERN)
    lines: tuple[LineWithUnit, ...]
    channel: str = "shop"


class SoldWithText(Sold):
    id: str  # type: ignore[assignment]  # as an edit would change it


class SoldWithoutNote(BaseEvent):
    key_field: ClassVar[str] = "id"
    event_type: Literal["thing.sold"] = "thing.sold"
    id: int
    lines: tuple[Line, ...]


class LineWithoutAmount(BaseModel):
    sku: str


class SoldWithoutAmount(Sold):
    lines: tuple[LineWithoutAmount, ...]  # type: ignore[assignment]  # as an edit would change it


class SoldDescribed(Sold):
    id: int = Field(description="the number on the receipt")


def changes(model: type[BaseEvent]) -> list[str]:
    return list(breaking_changes(schema_of(EventType(Sold)), schema_of(EventType(model))))


@pytest.mark.parametrize("model", [Sold, SoldWithMore, SoldDescribed])
def test_readers_do_not_mind_what_is_added_or_described(model: type[BaseEvent]) -> None:
    assert changes(model) == []


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (SoldWithText, "id was {'type': 'integer'} and is {'type': 'string'}"),
        (SoldWithoutNote, "note is gone"),
        (SoldWithoutAmount, "lines[].amount is gone"),
    ],
)
def test_readers_mind_what_is_changed_or_gone(model: type[BaseEvent], change: str) -> None:
    assert changes(model) == [change]


def test_readers_mind_what_may_be_missing() -> None:
    old = {"properties": {"id": {"type": "integer"}}, "required": ["id"]}
    new = {"properties": {"id": {"type": "integer"}}}
    assert list(breaking_changes(old, new)) == ["id may be missing"]


def test_an_incompatible_change_is_not_exported_over_what_is_there(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    with pytest.raises(IncompatibleChange, match=r"thing.sold 1.0.0: id was .* version 2.0.0"):
        export([EventType(SoldWithText)], tmp_path)
    assert is_exported(EventType(Sold), tmp_path)


def test_a_new_minor_version_is_compared_with_those_before(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    (exported,) = export([EventType(SoldWithMore)], tmp_path)
    assert exported == tmp_path / "thing.sold" / "1.1.0.json"
    with pytest.raises(IncompatibleChange, match="channel is gone"):
        check_compatible(EventType(Sold), tmp_path)


def test_exporting_again_writes_nothing(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    assert export([EventType(Sold)], tmp_path) == []
