"""The contract with readers of the published events: each version's JSON Schema, kept and compared.

A folder under version control holds a file an event type, `<event type>.json`: for each version that
was ever published its `schema` and a `sample`, a message as it was sent.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from app.platform.events.event import EventType

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

# These say nothing about which messages are valid, and may be changed in a published version.
_TEXTS_FOR_PEOPLE = {"title", "description", "examples"}


class IncompatibleChange(Exception):
    """An event changed in a way that its readers could trip over, and kept its major version; or
    it has a new one, to which no upcaster leads."""


class VersionNotRaised(Exception):
    """An event changed in a way that its readers can live with, and kept its version. The message
    names the next one."""


class UnreadableFile(Exception):
    """A stored schema or sample cannot be read."""


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
    Raises what `check_compatible` raises, before anything is written.
    """
    entries = list(event_types)
    for entry in entries:
        check_compatible(entry, folder)
    return [path for entry in entries if (path := _write(entry, folder)) is not None]


def check_compatible(event_type: EventType, folder: Path) -> None:
    """Refuse a change of an event that its version does not tell.

    Readers of all kept versions of the same major version have to be able to read what is published
    now, upcasters have to lead to it from all others, kept samples have to be readable, and a kept
    version stays what it is. Raises IncompatibleChange, VersionNotRaised and UnreadableFile.
    """
    try:
        event_type.check_upcasters()
    except ValueError as error:
        raise IncompatibleChange(str(error)) from error
    kept = {
        version: what
        for version, what in kept_versions(event_type.name, folder).items()
        if "schema" in what and version.split(".")[0] == str(event_type.major)
    }
    for version, what in kept.items():
        _check_readable(event_type, version, what, folder)
    if event_type.service is None:  # otherwise the version is not ours to raise
        _check_version(event_type, kept, folder)


def _check_readable(
    event_type: EventType, version: str, kept: dict[str, Any], folder: Path
) -> None:
    problems = list(breaking_changes(kept["schema"], schema_of(event_type)))
    if not problems and "sample" in kept:
        problems += _problems_of(event_type, kept["sample"])
    if problems:
        raise IncompatibleChange(
            f"{event_type.name} {version}: {'; '.join(problems)}. Readers would fail: take it"
            f" back, or make it version {event_type.major + 1}.0.0 with an upcaster from"
            f" version {event_type.major} and a sample. {_never_published(event_type, folder)}"
        )


def _problems_of(event_type: EventType, sample: Any) -> Iterator[str]:
    try:
        event_type.model.model_validate_json(json.dumps(sample))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            place = ".".join(str(part) for part in problem["loc"]) or "event"
            yield f"its sample cannot be read: {place}: {problem['msg']}"


def _check_version(event_type: EventType, kept: dict[str, dict[str, Any]], folder: Path) -> None:
    """A kept version stays as it is, and a patch of it says nothing else."""
    for version, what in kept.items():
        if _minor_of(version) != _minor_of(event_type.version):
            continue
        found = [
            change.text
            for change in changes(what["schema"], schema_of(event_type))
            if change.place != "version"
        ]
        if found:
            latest = max(_minor_of(each) for each in kept)
            raise VersionNotRaised(
                f"{event_type.name} {version}: {'; '.join(found)}. A published version stays as it"
                f" is: raise the version to {event_type.major}.{latest + 1}.0, or take it back."
                f" {_never_published(event_type, folder)}"
            )


def _minor_of(version: str) -> int:
    return int(version.split(".")[1])


def _never_published(event_type: EventType, folder: Path) -> str:
    return (
        f"A version that was never published may be deleted from {_path(event_type.name, folder)},"
        " or the file if it holds no other, and exported anew"
    )


def is_exported(event_type: EventType, folder: Path) -> bool:
    """Whether the newest version's kept schema is that of the code. Raises UnreadableFile."""
    kept = kept_versions(event_type.name, folder).get(event_type.version, {})
    return kept.get("schema") == schema_of(event_type)


def has_sample(event_type: EventType, folder: Path) -> bool:
    """Whether a sample of the newest version is kept. Raises UnreadableFile."""
    return "sample" in kept_versions(event_type.name, folder).get(event_type.version, {})


class Change(NamedTuple):
    """A difference between two schemas, and whether readers of the old one could trip over it."""

    place: str
    text: str
    breaking: bool


def breaking_changes(old: Schema, new: Schema) -> Iterator[str]:
    """List what a reader who relies on `old` would not find in a message that follows `new`."""
    return (change.text for change in changes(old, new) if change.breaking)


def changes(old: Schema, new: Schema) -> Iterator[Change]:
    """All differences between two schemas, except in texts for people and in the names of models."""
    return _Comparison(old.get("$defs", {}), new.get("$defs", {})).compare(old, new, "")


_ONE_INSIDE = {"items": "[]", "additionalProperties": "{}"}
_SEVERAL_INSIDE = ("anyOf", "oneOf", "allOf", "prefixItems")


class _Comparison:
    """A walk through two schemas side by side."""

    def __init__(self, old_definitions: Schema, new_definitions: Schema) -> None:
        self._old_definitions = old_definitions
        self._new_definitions = new_definitions

    def compare(
        self, old: Schema, new: Schema, place: str, above: frozenset[tuple[str, str]] = frozenset()
    ) -> Iterator[Change]:
        models = (old.get("$ref", ""), new.get("$ref", ""))
        if models in above:
            return  # a model that holds itself
        if any(models):
            above |= {models}
        old, new = _resolved(old, self._old_definitions), _resolved(new, self._new_definitions)
        compared = {*_TEXTS_FOR_PEOPLE, "$defs", "default"}
        for keyword, before, after, where in self._inside(old, new, place):
            compared.add(keyword)
            yield from self.compare(before, after, where, above)
        if "properties" in old and "properties" in new:
            compared |= {"properties", "required"}
            yield from _fields(old, new, place)
        if old.get("default") != new.get("default"):
            text = (
                f"the default of {place} was {old.get('default')!r} and is {new.get('default')!r}"
            )
            yield Change(place, text, False)
        was, now = ({k: v for k, v in each.items() if k not in compared} for each in (old, new))
        if was != now:
            yield Change(place, f"{place or 'the event'} was {was} and is {now}", True)

    def _inside(
        self, old: Schema, new: Schema, place: str
    ) -> Iterator[tuple[str, Schema, Schema, str]]:
        """The schemas that both have at the same place: keyword, old, new, and where."""
        fields, now = old.get("properties", {}), new.get("properties", {})
        for name in [name for name in fields if name in now]:
            yield "properties", fields[name], now[name], f"{place}.{name}" if place else name
        for keyword, mark in _ONE_INSIDE.items():
            if isinstance(old.get(keyword), dict) and isinstance(new.get(keyword), dict):
                yield keyword, old[keyword], new[keyword], f"{place}{mark}"
        for keyword in _SEVERAL_INSIDE:
            if len(old.get(keyword, ())) == len(new.get(keyword, ())):
                for before, after in zip(old.get(keyword, ()), new.get(keyword, ()), strict=True):
                    yield keyword, before, after, place


def _fields(old: Schema, new: Schema, place: str) -> Iterator[Change]:
    """List the fields of an object that are gone, new, or present in other messages than before."""
    before, after = old["properties"].keys(), new["properties"].keys()
    required_before, required_after = set(old.get("required", ())), set(new.get("required", ()))
    for name in [*before, *(name for name in after if name not in before)]:
        where = f"{place}.{name}" if place else name
        if name not in after:
            yield Change(where, f"{where} is gone", True)
        elif name not in before:
            yield Change(where, f"{where} is new", False)
        elif name in required_before - required_after:
            yield Change(where, f"{where} may be missing", True)
        elif name in required_after - required_before:
            yield Change(where, f"{where} is always there", False)


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    return {**definitions[reference.rsplit("/", 1)[1]], **beside}


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
