"""The JSON Schemas of the published events: exported, kept, and compared with what was before."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from app.kafka.event import EventType

Schema = dict[str, Any]

# These say nothing about which messages are valid.
_ANNOTATIONS = {"title", "description", "default", "examples"}


class IncompatibleChange(Exception):
    """An event changed in a way that its readers could trip over, and kept its major version."""


def schema_of(event_type: EventType) -> Schema:
    """The schema of the messages that are published in the newest version."""
    return event_type.model.model_json_schema(mode="serialization")


def export(event_types: Iterable[EventType], folder: Path) -> list[Path]:
    """Write `<event type>/<version>.json` for each; return those that are new or were changed.

    Raises IncompatibleChange, before anything is written.
    """
    entries = list(event_types)
    for entry in entries:
        check_compatible(entry, folder)
    return [path for entry in entries if (path := _write(entry, folder)) is not None]


def check_compatible(event_type: EventType, folder: Path) -> None:
    """Raise IncompatibleChange unless readers of all exported versions of the same major version
    can read what is published now."""
    for exported in sorted((folder / event_type.name).glob(f"{event_type.major}.*.json")):
        changes = list(breaking_changes(json.loads(exported.read_text()), schema_of(event_type)))
        if changes:
            raise IncompatibleChange(
                f"{event_type.name} {exported.stem}: {'; '.join(changes)}. Readers would fail: take"
                f" it back, or make it version {event_type.major + 1}.0.0 with an upcaster from"
                f" version {event_type.major} and a golden sample"
            )


def is_exported(event_type: EventType, folder: Path) -> bool:
    """Whether the newest version's exported schema is that of the code."""
    path = _path(event_type, folder)
    return path.is_file() and json.loads(path.read_text()) == schema_of(event_type)


def breaking_changes(old: Schema, new: Schema) -> Iterator[str]:
    """What a reader who relies on `old` would not find in a message that follows `new`."""
    yield from _differences(old, new, old.get("$defs", {}), new.get("$defs", {}), "")


def _differences(
    old: Schema, new: Schema, old_defs: Schema, new_defs: Schema, place: str
) -> Iterator[str]:
    old, new = _resolved(old, old_defs), _resolved(new, new_defs)
    if "properties" in old and "properties" in new:
        for name, before in old["properties"].items():
            where = f"{place}.{name}" if place else name
            if name not in new["properties"]:
                yield f"{where} is gone"
                continue
            if name in old.get("required", ()) and name not in new.get("required", ()):
                yield f"{where} may be missing"
            after = new["properties"][name]
            yield from _differences(before, after, old_defs, new_defs, where)
    elif "items" in old and "items" in new:
        yield from _differences(old["items"], new["items"], old_defs, new_defs, f"{place}[]")
    elif _bare(old) != _bare(new):
        yield f"{place} was {_bare(old)} and is {_bare(new)}"


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    reference = schema.get("$ref")
    return schema if reference is None else definitions[reference.rsplit("/", 1)[1]]


def _bare(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name not in _ANNOTATIONS}


def _path(event_type: EventType, folder: Path) -> Path:
    return folder / event_type.name / f"{event_type.version}.json"


def _write(event_type: EventType, folder: Path) -> Path | None:
    if is_exported(event_type, folder):
        return None
    path = _path(event_type, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema_of(event_type), indent=2) + "\n")
    return path
