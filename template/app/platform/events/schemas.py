"""Stored JSON Schemas of the published events, and their comparison with the code.

A folder under version control has a file for each event type, `<event type>.json`. It has, for each
version that was ever published, the `schema` and a `sample`: the body of a message.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.json_schema import JsonSchemaMode

from app.platform.events.compatibility import obstacles
from app.platform.events.event import EventType
from app.platform.events.json_schema import ExactJsonSchema
from app.platform.events.keywords import Obstacle, Schema, described
from app.platform.events.sample_problems import problems_of

# They may change in a published version.
_TEXTS = {"title", "description", "examples"}


class IncompatibleChange(Exception):
    """An event changed in a way that breaks its readers, without a new major version and upcaster."""


class VersionNotRaised(Exception):
    """An event changed compatibly, without a new version. The message names the next one."""


class UnreadableFile(Exception):
    """A stored schema or sample cannot be read."""


def schema_of(event_type: EventType) -> Schema:
    """Return the schema of the newest version's messages."""
    return _schema(event_type, "serialization")


def _schema(event_type: EventType, mode: JsonSchemaMode) -> Schema:
    return event_type.model.model_json_schema(schema_generator=ExactJsonSchema, mode=mode)


def stored_versions(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return `schema` and `sample` of each stored version of the event type `name`.

    Raises UnreadableFile.
    """
    path = _path(name, folder)
    if not path.is_file():
        return {}
    try:
        versions: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        raise UnreadableFile(
            f"{path} is not valid JSON: {error}: correct it, or revert its last change"
        ) from error
    return versions


def export(event_types: Iterable[EventType], folder: Path) -> list[Path]:
    """Store the schema of each newest version; return the files that are new or changed.

    A version without a sample gets one with placeholder values, if the model accepts those.
    Raises the errors of `check_compatible`, before anything is written.
    """
    entries = list(event_types)
    for entry in entries:
        check_compatible(entry, folder)
    return [path for entry in entries if (path := _write(entry, folder)) is not None]


def check_compatible(event_type: EventType, folder: Path) -> None:
    """Refuse a change of an event without the new version that it needs.

    Within a major version, readers of each stored version must be able to read the newest messages,
    and the newest model the messages of each stored version. Upcasters must lead from all other major
    versions to the newest, and a stored version must not change. Raises IncompatibleChange,
    VersionNotRaised and UnreadableFile.
    """
    try:
        event_type.check_upcasters()
    except ValueError as error:
        raise IncompatibleChange(str(error)) from error
    stored = {
        version: entry
        for version, entry in stored_versions(event_type.name, folder).items()
        if "schema" in entry and version.split(".")[0] == str(event_type.major)
    }
    for version, entry in stored.items():
        _check_readable(event_type, version, entry, folder)
    if event_type.service is None:  # the owner raises the version of a foreign event
        _check_version(event_type, stored, folder)


def _check_readable(
    event_type: EventType, version: str, stored: dict[str, Any], folder: Path
) -> None:
    found: dict[str, str] = {}
    if event_type.service is None:  # what others write, nobody reads from us
        for obstacle in obstacles(schema_of(event_type), stored["schema"]):
            found[obstacle.path] = obstacle.as_change_of_writer()
    for obstacle in _unreadable(event_type, stored["schema"]):
        found.setdefault(obstacle.path, f"{obstacle.as_change_of_reader()} (in older messages)")
    problems = list(found.values())
    if not problems and "sample" in stored:
        problems += problems_of(event_type, stored["sample"])
    if problems:
        raise IncompatibleChange(
            _listed(event_type, version, problems) + _mending(event_type, folder)
        )


def _listed(event_type: EventType, version: str, problems: Iterable[str]) -> str:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return f"{event_type.name} {version}:{lines}\n"


def _mending(event_type: EventType, folder: Path) -> str:
    if event_type.service is not None:
        return (
            "Its messages could not be read: revert it. If the owner changed the event, delete the"
            f" version from {_path(event_type.name, folder)}, and export it again"
        )
    return (
        f"Readers would fail: revert it, or make it version {event_type.major + 1}.0.0 with an"
        f" upcaster from version {event_type.major} and a sample."
        f" {_unpublished_hint(event_type, folder)}"
    )


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """Describe what can make readers of `old` fail that get the messages of `new`."""
    return [found.as_change_of_writer() for found in obstacles(new, old)]


def _unreadable(event_type: EventType, stored: Schema) -> Iterator[Obstacle]:
    """Yield what can make the newest model fail that gets older messages.

    Fields are left out that the model itself writes in another form than it is known to read, by a
    serializer for example.
    """
    read = _schema(event_type, "validation")
    unknown = {found.path for found in obstacles(schema_of(event_type), read)}
    return (found for found in obstacles(stored, read) if found.path not in unknown)


def _check_version(event_type: EventType, stored: dict[str, dict[str, Any]], folder: Path) -> None:
    """Refuse a change of a stored version, or of a patch of it."""
    for version, entry in stored.items():
        if _minor_of(version) != _minor_of(event_type.version):
            continue
        found = [
            change.text
            for change in changes(entry["schema"], schema_of(event_type))
            if change.path != "version"
        ]
        if found:
            latest = max(_minor_of(each) for each in stored)
            raise VersionNotRaised(
                f"{_listed(event_type, version, found)}A published version must not change:"
                f" raise the version to {event_type.major}.{latest + 1}.0, or revert it."
                f" {_unpublished_hint(event_type, folder)}"
            )


def _minor_of(version: str) -> int:
    return int(version.split(".")[1])


def _unpublished_hint(event_type: EventType, folder: Path) -> str:
    return (
        f"A version that was never published may be deleted from {_path(event_type.name, folder)},"
        " or the file if it holds no other, and exported again"
    )


def is_exported(event_type: EventType, folder: Path) -> bool:
    """Return whether the newest version's stored schema equals the code's. Raises UnreadableFile."""
    stored = stored_versions(event_type.name, folder).get(event_type.version, {})
    return stored.get("schema") == schema_of(event_type)


def has_sample(event_type: EventType, folder: Path) -> bool:
    """Return whether the newest version has a stored sample. Raises UnreadableFile."""
    return "sample" in stored_versions(event_type.name, folder).get(event_type.version, {})


def problem_of(event_type: EventType, folder: Path) -> str:
    """Return what `app schemas check` finds wrong with the event; "" if nothing is."""
    try:
        check_compatible(event_type, folder)
        exported = is_exported(event_type, folder)
    except (IncompatibleChange, VersionNotRaised, UnreadableFile) as error:
        return str(error)
    if exported:
        return ""
    return f"{event_type.name} {event_type.version} is not exported: run `app schemas export`"


class Step(NamedTuple):
    """The step from a version of an event to the next one: all differences between their schemas.

    `breaking` are those for which readers of the old version can fail with messages of the new one.
    """

    old: str
    new: str
    changes: list[str]
    breaking: list[str]


def history(event_type: EventType, folder: Path) -> list[Step]:
    """Compare each stored version with the next, and the last one with the code.

    Raises UnreadableFile.
    """
    stored = stored_versions(event_type.name, folder)
    schemas = {version: entry["schema"] for version, entry in stored.items() if "schema" in entry}
    versions = [(version, schemas[version]) for version in sorted(schemas, key=_numbers)]
    versions.append((f"{event_type.version} in the code", schema_of(event_type)))
    return [
        Step(old, new, [c.text for c in changes(before, after)], breaking_changes(before, after))
        for (old, before), (new, after) in pairwise(versions)
    ]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


class Change(NamedTuple):
    """A difference between two schemas."""

    path: str
    text: str


def changes(old: Schema, new: Schema) -> Iterator[Change]:
    """Yield all differences between two schemas, except in their texts and in names of models."""
    return _Comparison(old.get("$defs", {}), new.get("$defs", {})).compare(old, new, "")


_ONE_INSIDE = {"items": "[]", "additionalProperties": "{}"}
_SEVERAL_INSIDE = ("anyOf", "oneOf", "allOf", "prefixItems")


class _Comparison:
    """A walk through two schemas side by side."""

    def __init__(self, old_definitions: Schema, new_definitions: Schema) -> None:
        self._old_definitions = old_definitions
        self._new_definitions = new_definitions

    def compare(
        self, old: Schema, new: Schema, path: str, visited: frozenset[tuple[str, str]] = frozenset()
    ) -> Iterator[Change]:
        models = (old.get("$ref", ""), new.get("$ref", ""))
        if models in visited:
            return  # a recursive model
        if any(models):
            visited |= {models}
        old, new = _resolved(old, self._old_definitions), _resolved(new, self._new_definitions)
        compared = {*_TEXTS, "$defs", "default", "discriminator", "x-tags"}
        for keyword, before, after, nested in self._inside(old, new, path):
            compared.add(keyword)
            yield from self.compare(before, after, nested, visited)
        if "properties" in old and "properties" in new:
            compared |= {"properties", "required"}
            yield from _fields(old, new, path)
        if old.get("default") != new.get("default"):
            text = f"the default was {old.get('default')!r}, is {new.get('default')!r}"
            yield Change(path, f"{path}: {text}")
        was, now = ({k: v for k, v in each.items() if k not in compared} for each in (old, new))
        if was != now:
            texts = described(old), described(new)
            if texts[0] == texts[1]:
                texts = str(was), str(now)
            yield Change(path, f"{path or 'the event'}: was {texts[0]}, is {texts[1]}")

    def _inside(
        self, old: Schema, new: Schema, path: str
    ) -> Iterator[tuple[str, Schema, Schema, str]]:
        """Yield the nested schemas that both have: keyword, old, new, and path."""
        fields, now = old.get("properties", {}), new.get("properties", {})
        for name in [name for name in fields if name in now]:
            yield "properties", fields[name], now[name], f"{path}.{name}" if path else name
        for keyword, mark in _ONE_INSIDE.items():
            if isinstance(old.get(keyword), dict) and isinstance(new.get(keyword), dict):
                yield keyword, old[keyword], new[keyword], f"{path}{mark}"
        for keyword in _SEVERAL_INSIDE:
            if len(old.get(keyword, ())) == len(new.get(keyword, ())):
                for before, after in zip(old.get(keyword, ()), new.get(keyword, ()), strict=True):
                    yield keyword, before, after, path


def _fields(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    """Yield the fields of an object that were removed, added, or became optional or required."""
    before, after = old["properties"].keys(), new["properties"].keys()
    required_before, required_after = set(old.get("required", ())), set(new.get("required", ()))
    for name in [*before, *(name for name in after if name not in before)]:
        nested = f"{path}.{name}" if path else name
        if name not in after:
            yield Change(nested, f"{nested}: is gone")
        elif name not in before:
            yield Change(nested, f"{nested}: is new")
        elif name in required_before - required_after:
            yield Change(nested, f"{nested}: may be missing")
        elif name in required_after - required_before:
            yield Change(nested, f"{nested}: is always there")


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    return {**definitions[reference.rsplit("/", 1)[1]], **beside}


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}.json"


_PLACEHOLDERS = {
    "string": "text",
    "integer": 1,
    "number": 1,
    "boolean": True,
    "array": [],
    "object": {},
}
_FORMATTED = {
    "uuid": "00000000-0000-4000-8000-000000000000",
    "date-time": "2025-01-31T09:30:00.125000Z",
    "date": "2025-01-31",
    "email": "ada@example.com",
    "uri": "https://example.com/",
}


def sample_event(event_type: EventType) -> Any | None:
    """Return a message of the newest version with placeholder values; None if the model refuses it.

    A field takes its first example, if the model has some.
    """
    schema = event_type.model.model_json_schema(mode="validation")
    try:
        event = event_type.model.model_validate(_placeholder(schema, schema.get("$defs", {})))
    except (ValidationError, RecursionError):
        return None
    return event.model_dump(mode="json")


def _placeholder(schema: Schema, definitions: Schema) -> Any:
    schema = _resolved(schema, definitions)
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    for keyword in ("examples", "enum"):
        if keyword in schema:
            return schema[keyword][0]
    if "anyOf" in schema:
        return _placeholder(schema["anyOf"][0], definitions)
    if "properties" in schema:
        return {name: _placeholder(of, definitions) for name, of in schema["properties"].items()}
    if "items" in schema:
        return [_placeholder(schema["items"], definitions)]
    if "minimum" in schema:
        return schema["minimum"]
    return _FORMATTED.get(schema.get("format", ""), _PLACEHOLDERS.get(schema.get("type", "")))


def _write(event_type: EventType, folder: Path) -> Path | None:
    versions = stored_versions(event_type.name, folder)
    stored = versions.setdefault(event_type.version, {})
    before = dict(stored)
    stored["schema"] = schema_of(event_type)
    if "sample" not in stored and (sample := sample_event(event_type)) is not None:
        stored["sample"] = sample
    if stored == before:
        return None
    path = _path(event_type.name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(versions, indent=2) + "\n")
    return path
