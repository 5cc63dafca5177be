"""What readers of the published events rely on: each version's JSON Schema, kept and compared.

A folder under version control holds a file an event type, `<event type>.json`: for each version that
was ever published its `schema` and a `sample`, a message as it was sent.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.kafka.event import EventType

Schema = dict[str, Any]

# What a made-up sample holds where nothing else is asked for; the first that fits a pattern is taken.
_TEXTS = ["text", "1", "1.00", "TEXT"]
_FORMATS = {
    "uuid": "00000000-0000-4000-8000-000000000000",
    "date-time": "2025-01-31T09:30:00.125000Z",
    "date": "2025-01-31",
    "email": "ada@example.com",
    "uri": "https://example.com/",
}

# These say nothing about which messages are valid.
_ANNOTATIONS = {"title", "description", "default", "examples"}


class IncompatibleChange(Exception):
    """An event changed in a way that its readers could trip over, and kept its major version; or
    it has a new one, to which no upcaster leads."""


class UnreadableFile(Exception):
    """What is kept of an event type cannot be read."""


def schema_of(event_type: EventType) -> Schema:
    """The schema of the messages that are published in the newest version."""
    return event_type.model.model_json_schema(mode="serialization")


def kept_versions(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """`schema` and `sample` by version, of the event type `name`; empty if nothing is kept.

    Raises UnreadableFile.
    """
    path = _path(name, folder)
    if not path.is_file():
        return {}
    try:
        versions: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise UnreadableFile(
            f"{path} is not JSON: {error}. Mend it, or take back its last change"
        ) from error
    return versions


def export(event_types: Iterable[EventType], folder: Path) -> list[Path]:
    """Keep the schema of each newest version; return the files that are new or were changed.

    A version that has no sample gets one that is made up, if its values can be guessed.
    Raises IncompatibleChange and UnreadableFile, before anything is written.
    """
    entries = list(event_types)
    for entry in entries:
        check_compatible(entry, folder)
    return [path for entry in entries if (path := _write(entry, folder)) is not None]


def check_compatible(event_type: EventType, folder: Path) -> None:
    """Raise IncompatibleChange unless readers of all kept versions of the same major version can
    read what is published now, and upcasters lead to it from all others. Raises UnreadableFile, too.
    """
    try:
        event_type.check_upcasters()
    except ValueError as error:
        raise IncompatibleChange(str(error)) from error
    for version, kept in kept_versions(event_type.name, folder).items():
        if "schema" not in kept or version.split(".")[0] != str(event_type.major):
            continue
        changes = list(breaking_changes(kept["schema"], schema_of(event_type)))
        if changes:
            raise IncompatibleChange(
                f"{event_type.name} {version}: {'; '.join(changes)}. Readers would fail: take it"
                f" back, or make it version {event_type.major + 1}.0.0 with an upcaster from"
                f" version {event_type.major} and a sample. A version that was never published"
                f" may be deleted from {_path(event_type.name, folder)}, or the file if it holds no"
                " other, and exported anew"
            )


def is_exported(event_type: EventType, folder: Path) -> bool:
    """Whether the newest version's kept schema is that of the code. Raises UnreadableFile."""
    kept = kept_versions(event_type.name, folder).get(event_type.version, {})
    return kept.get("schema") == schema_of(event_type)


def has_sample(event_type: EventType, folder: Path) -> bool:
    """Whether a sample of the newest version is kept. Raises UnreadableFile."""
    return "sample" in kept_versions(event_type.name, folder).get(event_type.version, {})


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


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}.json"


def made_up(event_type: EventType) -> Any | None:
    """A message as the newest version is published, with values nobody sent; none if it is refused."""
    schema = event_type.model.model_json_schema(mode="validation")  # of a Decimal it tells more
    try:
        event = event_type.model.model_validate(_value(schema, schema.get("$defs", {})))
    except (ValidationError, RecursionError):  # such as a list of what itself has such a list
        return None
    return event.model_dump(mode="json")


def _value(schema: Schema, definitions: Schema) -> Any:
    schema = _resolved(schema, definitions)
    for known in ("const", "default"):
        if known in schema:
            return schema[known]
    for several in ("examples", "enum"):
        if several in schema:
            return schema[several][0]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], definitions)
    match schema.get("type"):
        case "object":
            properties: Schema = schema.get("properties", {})
            return {name: _value(of, definitions) for name, of in properties.items()}
        case "array":
            return [_value(schema["items"], definitions)] if "items" in schema else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "string":
            return _text(schema)
    return None


def _text(schema: Schema) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    fitting = (text for text in _TEXTS if re.search(schema.get("pattern", ""), text))
    return next(fitting, _TEXTS[0])


def _write(event_type: EventType, folder: Path) -> Path | None:
    versions = kept_versions(event_type.name, folder)
    kept = versions.setdefault(event_type.version, {})
    before = dict(kept)
    kept["schema"] = schema_of(event_type)
    if "sample" not in kept and (sample := made_up(event_type)) is not None:
        kept["sample"] = sample
    if kept == before:
        return None
    path = _path(event_type.name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(versions, indent=2) + "\n")
    return path
