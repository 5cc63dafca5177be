"""Events as they are published: their versions, schemas and samples."""

import json
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel, Field

from app import SERVICE_NAME, wiring
from app.platform.events.event import (
    VERSION_PATTERN,
    BaseEvent,
    EventRegistry,
    EventType,
    Payload,
    major_of,
)
from app.platform.events.schemas import (
    IncompatibleChange,
    UnreadableFile,
    VersionNotRaised,
    breaking_changes,
    check_compatible,
    export,
    is_exported,
    schema_of,
    stored_versions,
)
from app.platform.kafka.codec import decode

# Under tests/contracts, a file an event type: the schema and a golden sample of each version. Samples
# are never changed or deleted, because messages like them are still out there.
KEPT = Path(__file__).parent
REGISTRY = EventRegistry(SERVICE_NAME, wiring.service.events)


def entry_of(name: str) -> EventType:
    (entry,) = (entry for entry in REGISTRY if entry.name == name)
    return entry


SAMPLES = [
    pytest.param(path.stem, version, kept["sample"], id=f"{path.stem} {version}")
    for path in sorted(KEPT.glob("*.json"))
    for version, kept in stored_versions(path.stem, KEPT).items()
    if "sample" in kept
]


@pytest.mark.parametrize("entry", wiring.service.events, ids=lambda entry: entry.name)
def test_each_version_has_a_golden_sample(entry: EventType) -> None:
    kept = stored_versions(entry.name, KEPT)
    missing = [version for version, what in kept.items() if "sample" not in what]
    assert not missing, (
        f"tests/contracts/{entry.name}.json: add a message of version {', '.join(missing)} as the key"
        ' "sample", beside "schema" (`app schemas export` makes one up for the newest version)'
    )


@pytest.mark.parametrize(("name", "version", "sample"), SAMPLES)
def test_every_version_is_read_as_the_newest(name: str, version: str, sample: Payload) -> None:
    entry = entry_of(name)
    assert sample["version"] == version
    event = decode(REGISTRY.topic(entry.model), json.dumps(sample).encode(), REGISTRY)
    assert type(event) is entry.model
    assert event.version.split(".")[0] == entry.version.split(".")[0]


@pytest.mark.parametrize(("name", "version", "sample"), SAMPLES)
def test_reading_keeps_what_the_message_said(name: str, version: str, sample: Payload) -> None:
    entry = entry_of(name)
    if major_of(version) != entry.major:
        return  # an upcaster may say it in other fields
    event = decode(REGISTRY.topic(entry.model), json.dumps(sample).encode(), REGISTRY)
    after = json.loads(event.model_dump_json())
    assert {key: after[key] for key in sample if key != "version"} == {
        key: value for key, value in sample.items() if key != "version"
    }, version


@pytest.mark.parametrize("entry", wiring.service.events, ids=lambda entry: entry.name)
def test_the_newest_version_is_published_as_its_sample_shows(entry: EventType) -> None:
    sample = stored_versions(entry.name, KEPT).get(entry.version, {}).get("sample")
    assert sample is not None, (
        f'tests/contracts/{entry.name}.json has no "sample" of version {entry.version}:'
        " `app schemas export` makes one up"
    )
    event = entry.model.model_validate_json(json.dumps(sample))
    assert json.loads(event.model_dump_json()) == sample


@pytest.mark.parametrize("entry", wiring.service.events, ids=lambda entry: entry.name)
def test_every_major_version_has_a_golden_sample(entry: EventType) -> None:
    majors = {int(version.split(".")[0]) for version in stored_versions(entry.name, KEPT)}
    assert majors == set(range(1, entry.major + 1))


@pytest.mark.parametrize("entry", wiring.service.events, ids=lambda entry: entry.name)
def test_the_schema_is_exported(entry: EventType) -> None:
    assert is_exported(entry, KEPT), f"{entry.name} changed: run `app schemas export`"


@pytest.mark.parametrize("entry", wiring.service.events, ids=lambda entry: entry.name)
def test_no_event_changed_incompatibly_within_its_major_version(entry: EventType) -> None:
    check_compatible(entry, KEPT)


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


class SoldOnAFirst(Sold):
    day: str = Field(pattern="^first of .*$")


class SoldDescribed(Sold):
    id: int = Field(description="the number on the receipt")


def changes(model: type[BaseEvent]) -> list[str]:
    return breaking_changes(schema_of(EventType(Sold)), schema_of(EventType(model)))


@pytest.mark.parametrize("model", [Sold, SoldWithMore, SoldDescribed])
def test_readers_do_not_mind_what_is_added_or_described(model: type[BaseEvent]) -> None:
    assert changes(model) == []


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (SoldWithText, "id: was integer, is string"),
        (SoldWithoutNote, "note: is gone"),
        (SoldWithoutAmount, "lines[].amount: is gone"),
    ],
)
def test_readers_mind_what_is_changed_or_gone(model: type[BaseEvent], change: str) -> None:
    assert changes(model) == [change]


def test_readers_mind_what_may_be_missing() -> None:
    old = {"properties": {"id": {"type": "integer"}}, "required": ["id"]}
    new = {"properties": {"id": {"type": "integer"}}}
    assert breaking_changes(old, new) == ["id: may be missing"]


def test_an_incompatible_change_overwrites_no_exported_schema(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    with pytest.raises(
        IncompatibleChange, match=r"(?s)thing.sold 1.0.0:\n  id: was .* version 2.0.0"
    ):
        export([EventType(SoldWithText)], tmp_path)
    assert is_exported(EventType(Sold), tmp_path)


class SoldWithChannel(Sold):
    channel: str = "shop"


class SoldInAPatch(SoldWithChannel):
    version: str = Field("1.0.1", pattern=VERSION_PATTERN)


class SoldWithUnits(Sold):
    lines: tuple[LineWithUnit, ...]


class SoldElsewhere(SoldWithChannel):
    channel: str = "web"


class SoldWithSeller(Sold):
    seller: str


class SoldToOne(Sold):
    line: Line | None = None
    by_sku: dict[str, Line] = Field(default_factory=dict)


class SoldToOneWithUnit(Sold):
    line: LineWithUnit | None = None
    by_sku: dict[str, Line] = Field(default_factory=dict)


class SoldToOneWithoutAmount(Sold):
    line: LineWithoutAmount | None = None
    by_sku: dict[str, LineWithoutAmount] = Field(default_factory=dict)


class SoldInParts(Sold):
    parts: "tuple[SoldInParts, ...]" = ()


class SoldInPartsDescribed(Sold):
    """So that a model which holds itself is compared with another."""

    parts: "tuple[SoldInPartsDescribed, ...]" = ()


class SoldAtLeastOne(Sold):
    lines: tuple[Line, ...] = Field(min_length=1)


@pytest.mark.parametrize(
    ("published", "changed", "change"),
    [
        (Sold, SoldWithChannel, "channel: is new"),
        (Sold, SoldInAPatch, "channel: is new"),
        (Sold, SoldWithUnits, "lines[].unit: is new"),
        (SoldToOne, SoldToOneWithUnit, "line.unit: is new"),
        (SoldWithChannel, SoldElsewhere, "channel: the default was 'shop', is 'web'"),
    ],
)
def test_a_published_version_is_not_exported_anew(
    tmp_path: Path, published: type[BaseEvent], changed: type[BaseEvent], change: str
) -> None:
    export([EventType(published)], tmp_path)
    before = (tmp_path / "thing.sold.json").read_text()
    with pytest.raises(VersionNotRaised, match=r"raise the version to 1\.1\.0") as refused:
        export([EventType(changed)], tmp_path)
    assert str(refused.value).startswith(f"thing.sold 1.0.0:\n  {change}\n")
    assert (tmp_path / "thing.sold.json").read_text() == before


def test_the_version_to_raise_to_is_behind_all_that_are_kept(tmp_path: Path) -> None:
    class MoreStill(SoldWithMore):
        till: int = 1

    export([EventType(Sold)], tmp_path)
    export([EventType(SoldWithMore)], tmp_path)
    with pytest.raises(VersionNotRaised, match=r"1\.1\.0:\n  till: is new\n.* version to 1\.2\.0"):
        export([EventType(MoreStill)], tmp_path)


def test_texts_for_people_of_a_published_version_may_change(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    assert export([EventType(SoldDescribed)], tmp_path) == [tmp_path / "thing.sold.json"]
    assert is_exported(EventType(SoldDescribed), tmp_path)


def test_a_version_that_was_never_published_is_exported_anew(tmp_path: Path) -> None:
    (file,) = export([EventType(Sold)], tmp_path)
    file.unlink()
    assert export([EventType(SoldWithChannel)], tmp_path) == [file]


def test_a_new_field_without_default_needs_a_major_version(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    with pytest.raises(
        IncompatibleChange, match=r"(?s)seller: is new, and has no default.* 2\.0\.0"
    ):
        export([EventType(SoldWithSeller)], tmp_path)


def test_one_more_field_of_anothers_event_is_no_new_version(tmp_path: Path) -> None:
    export([EventType(Sold, service="billing")], tmp_path)
    assert export([EventType(SoldWithChannel, service="billing")], tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (SoldToOne, SoldToOneWithoutAmount, "line.amount: is gone"),
        (SoldToOne, SoldToOneWithoutAmount, "by_sku{}.amount: is gone"),
        (SoldAtLeastOne, Sold, "lines: minItems was 1, is not set"),
    ],
)
def test_readers_mind_what_is_changed_inside(
    old: type[BaseEvent], new: type[BaseEvent], change: str
) -> None:
    found = breaking_changes(schema_of(EventType(old)), schema_of(EventType(new)))
    assert any(text.startswith(change) for text in found), found


def test_a_model_that_holds_itself_is_compared() -> None:
    old, new = (schema_of(EventType(m)) for m in (SoldInParts, SoldInPartsDescribed))
    assert breaking_changes(old, new) == []


def test_a_new_minor_version_is_compared_with_those_before(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    (exported,) = export([EventType(SoldWithMore)], tmp_path)
    assert exported == tmp_path / "thing.sold.json"
    assert list(stored_versions("thing.sold", tmp_path)) == ["1.0.0", "1.1.0"]
    with pytest.raises(IncompatibleChange, match="channel: is gone"):
        check_compatible(EventType(Sold), tmp_path)


def test_exporting_keeps_the_samples(tmp_path: Path) -> None:
    file = tmp_path / "thing.sold.json"
    file.write_text('{"1.0.0": {"sample": {"id": 7}}}')
    export([EventType(Sold)], tmp_path)
    kept = stored_versions("thing.sold", tmp_path)["1.0.0"]
    assert kept == {"sample": {"id": 7}, "schema": schema_of(EventType(Sold))}


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "thing.sold.json").write_text("{")
    with pytest.raises(UnreadableFile, match=r"thing.sold.json is not valid JSON"):
        export([EventType(Sold)], tmp_path)


class SoldWithEverything(Sold):
    code: str = Field(pattern=r"^[A-Z]{2,}$", examples=["AB"])
    maybe: int | None
    kind: Literal["cash", "card"]
    paid: bool
    price: Decimal


def test_a_sample_is_made_up_that_is_read_and_published_alike(tmp_path: Path) -> None:
    export([EventType(SoldWithEverything)], tmp_path)
    sample = stored_versions("thing.sold", tmp_path)["1.0.0"]["sample"]
    assert sample["version"] == "1.0.0"
    assert sample["kind"] == "cash"
    event = SoldWithEverything.model_validate_json(json.dumps(sample))
    assert json.loads(event.model_dump_json()) == sample


def test_no_sample_is_made_up_that_the_event_would_refuse(tmp_path: Path) -> None:
    export([EventType(SoldOnAFirst)], tmp_path)
    assert list(stored_versions("thing.sold", tmp_path)["1.0.0"]) == ["schema"]


def test_exporting_again_writes_nothing(tmp_path: Path) -> None:
    export([EventType(Sold)], tmp_path)
    assert export([EventType(Sold)], tmp_path) == []


def test_topics_are_service_entity_action_unless_declared() -> None:
    registry = EventRegistry(SERVICE_NAME, wiring.service.events)
    own = [entry for entry in wiring.service.events if entry.service is None]
    by_default = [entry for entry in own if entry.topic is None]
    topics = [registry.topic(entry.model) for entry in by_default]
    assert topics == [f"{SERVICE_NAME}.{entry.name}" for entry in by_default]
    assert all(entry.name.count(".") == 1 for entry in own)


def test_every_subscription_reads_registered_events() -> None:
    registry = EventRegistry(SERVICE_NAME, wiring.service.events)
    for subscription in wiring.service.subscriptions:
        assert subscription.topics(registry)


def test_events_are_keyed_by_the_entity_that_they_are_about() -> None:
    for entry in (entry for entry in wiring.service.events if entry.service is None):
        entity = entry.name.split(".")[0]
        assert entry.model.key_field == f"{entity}_id", f"as the key_field of {entry.name}"


def test_every_golden_sample_belongs_to_an_event() -> None:
    names = {entry.name for entry in wiring.service.events}
    assert {path.stem for path in KEPT.glob("*.json")} == names
