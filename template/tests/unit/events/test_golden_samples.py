"""Every version of every event that was ever published can still be read."""

import json
from pathlib import Path

import pytest

from app import wiring
from app.about import SERVICE_NAME
from app.kafka.codec import decode
from app.kafka.event import EventRegistry, EventType, Payload
from tests.unit.events.samples import GOLDEN, golden_samples, sample_id

REGISTRY = EventRegistry(SERVICE_NAME, wiring.EVENTS)


def entry_of(sample: Path) -> EventType:
    (entry,) = (entry for entry in REGISTRY if entry.name == sample.parent.name)
    return entry


def of_newest_version(samples: list[Path]) -> list[Path]:
    return [sample for sample in samples if sample.stem == entry_of(sample).version]


@pytest.mark.parametrize("sample", golden_samples(), ids=sample_id)
def test_every_version_is_read_as_the_newest(sample: Path) -> None:
    entry = entry_of(sample)
    event = decode(REGISTRY.topic(entry.model), sample.read_bytes(), REGISTRY)
    assert type(event) is entry.model
    assert event.version.split(".")[0] == entry.version.split(".")[0]


@pytest.mark.parametrize("sample", golden_samples(), ids=sample_id)
def test_reading_keeps_what_the_message_said(sample: Path) -> None:
    entry = entry_of(sample)
    before: Payload = json.loads(sample.read_text())
    event = decode(REGISTRY.topic(entry.model), sample.read_bytes(), REGISTRY)
    after = json.loads(event.model_dump_json())
    assert {name: after[name] for name in before if name != "version"} == {
        name: value for name, value in before.items() if name != "version"
    }


@pytest.mark.parametrize("entry", wiring.EVENTS, ids=lambda entry: entry.name)
def test_the_newest_version_has_a_golden_sample(entry: EventType) -> None:
    sample = GOLDEN / entry.name / f"{entry.version}.json"
    assert sample.is_file(), f"keep a message of {entry.name} {entry.version} as {sample}"


@pytest.mark.parametrize("sample", of_newest_version(golden_samples()), ids=sample_id)
def test_the_newest_version_is_published_as_its_sample_shows(sample: Path) -> None:
    event = entry_of(sample).model.model_validate_json(sample.read_bytes())
    assert json.loads(event.model_dump_json()) == json.loads(sample.read_text())


def test_every_major_version_below_the_newest_has_a_golden_sample() -> None:
    for entry in wiring.EVENTS:
        kept = {int(path.stem.split(".")[0]) for path in (GOLDEN / entry.name).glob("*.json")}
        assert kept == set(range(1, entry.major + 1)), entry.name
