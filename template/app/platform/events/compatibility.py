"""A proof that what is written by one JSON Schema can be read by another, and what prevents it.

The schemas are those of pydantic models: a written object has no fields but the declared ones, and a
reader ignores fields that it does not declare. A missing proof is an obstacle, too.
"""

import json
import math

from app.platform.events.keywords import (
    ABSENT,
    ANNOTATIONS,
    OPTIONAL,
    REQUIRED,
    Obstacle,
    Schema,
    admits,
    compared,
    described,
    kinds_of,
    parts_of,
    reads_kind,
    undeclared,
    values_of,
    without,
)

_ANYTHING: Schema = {}
_NOTHING: Schema = {"enum": []}

Assumed = tuple[tuple[Schema, Schema], ...]


def obstacles(written: Schema, read: Schema) -> list[Obstacle]:
    """Return what may keep a reader of `read` from reading all that `written` allows."""
    if without(written, *ANNOTATIONS - {"$defs"}) == without(read, *ANNOTATIONS - {"$defs"}):
        return []
    proof = _Proof(written.get("$defs", {}), read.get("$defs", {}))
    return list(dict.fromkeys(proof.obstacles(written, read, "", ())))


class _Proof:
    """A walk through two schemas side by side.

    `assumed` are the pairs that the walk is inside of. A recursive model comes back to one of them,
    deeper in the message, and nothing new can be found there.
    """

    def __init__(self, written_definitions: Schema, read_definitions: Schema) -> None:
        self._written = written_definitions
        self._read = read_definitions

    def obstacles(
        self, written: Schema, read: Schema, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        if any(written is before and read is after for before, after in assumed):
            return []
        assumed = (*assumed, (written, read))
        written, read = _resolved(written, self._written), _resolved(read, self._read)
        if read.keys() <= ANNOTATIONS or written == _NOTHING:
            return []
        if "allOf" in read:
            parts = [*read["allOf"], without(read, "allOf")]
            return [one for part in parts for one in self.obstacles(written, part, path, assumed)]
        if "allOf" in written:
            parts = [*written["allOf"], without(written, "allOf")]
            return min((self.obstacles(part, read, path, assumed) for part in parts), key=len)
        for union in ("anyOf", "oneOf"):
            if union in written:
                return self._from_union(written, read, union, path, assumed)
        for union in ("anyOf", "oneOf"):
            if union in read:
                return self._into_union(written, read, union, path, assumed)
        return self._of_types(written, read, path, assumed)

    def _from_union(
        self, written: Schema, read: Schema, union: str, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        """Look at each alternative that may be written."""
        pairs = [(member, read) for member in written[union]]
        if "x-tags" in written and "x-tags" in read:
            tags = read["x-tags"]
            pairs = [(each, tags.get(tag, _NOTHING)) for tag, each in written["x-tags"].items()]
        found = [one for pair in pairs for one in self.obstacles(*pair, path, assumed)]
        rest = without(written, union, *ANNOTATIONS)
        if found and rest and not self.obstacles(rest, read, path, assumed):
            return []
        whole = _difference(written, read, path)
        return [one if one.path != path or one.subject else whole for one in found]

    def _into_union(
        self, written: Schema, read: Schema, union: str, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        """Look for the alternative that reads what is written."""
        rest = without(read, union, "discriminator")
        found = self.obstacles(written, rest, path, assumed)
        if "discriminator" in read:
            return found + self._by_tag(written, read, path, assumed)
        if union == "oneOf":  # a function tells which one reads it
            return [*found, _difference(written, read, path)]
        tried = [self.obstacles(written, member, path, assumed) for member in read[union]]
        if not all(tried):
            return found
        parts = parts_of(written)
        if len(parts) > 1 and not any(self.obstacles(p, read, path, assumed) for p in parts):
            return found
        return found + self._closest(written, read, tried, path)

    def _closest(
        self, written: Schema, read: Schema, tried: list[list[Obstacle]], path: str
    ) -> list[Obstacle]:
        """Return the obstacles of the only alternative that is meant, else one of them all."""
        members = [_resolved(member, self._read) for member in read["anyOf"]]
        for key in ("title", "type"):
            alike = [
                each
                for each, member in zip(tried, members, strict=True)
                if key in written and member.get(key) == written[key]
            ]
            if len(alike) == 1 and any(one.path != path or one.subject for one in alike[0]):
                return alike[0]
        return [_difference(written, read, path)]

    def _by_tag(self, written: Schema, read: Schema, path: str, assumed: Assumed) -> list[Obstacle]:
        """Look at the alternative that the value of the discriminating field names."""
        tag, mapping = read["discriminator"]["propertyName"], read["discriminator"]["mapping"]
        fields = written.get("properties", {})
        values = values_of(_resolved(fields.get(tag, {}), self._written))
        if values is None or tag not in written.get("required", ()):
            return [_difference(written, read, path)]
        nested = _joined(path, tag)
        found: list[Obstacle] = []
        for value in values:
            name = value if isinstance(value, str) else json.dumps(value)
            members = [m for m in read["oneOf"] if mapping.get(name) in (m, m.get("$ref", m))]
            if not members:
                known = " or ".join(json.dumps(each) for each in mapping)
                found.append(Obstacle(nested, json.dumps(value), known))
            of_value = {**written, "properties": {**fields, tag: {"const": value}}}
            for member in members:
                found += self.obstacles(of_value, member, path, assumed)
        return found

    def _of_types(
        self, written: Schema, read: Schema, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        values, kinds = values_of(written), kinds_of(written)
        if values is not None:
            fits = all(admits(read, value) for value in values)
            return [] if fits else [_difference(written, read, path)]
        listed = values_of(read) is not None and kinds != ["null"]
        if listed or not all(reads_kind(read, kind) for kind in kinds):
            return [_difference(written, read, path)]
        found: list[Obstacle] = []
        for kind in kinds:
            found += compared(kind, written, read, path)
            if kind == "array":
                found += self._items(written, read, path, assumed)
            if kind == "object":
                found += self._fields(written, read, path, assumed)
        return found

    def _items(self, written: Schema, read: Schema, path: str, assumed: Assumed) -> list[Obstacle]:
        firsts = max(len(each.get("prefixItems", ())) for each in (written, read))
        longest = written.get("maxItems", math.inf)
        found: list[Obstacle] = []
        for at in range(int(min(firsts, longest))):
            pair = _item(written, at), _item(read, at)
            found += self.obstacles(*pair, f"{path}[{at}]", assumed)
        if longest > firsts:
            pair = _item(written, firsts), _item(read, firsts)
            found += self.obstacles(*pair, f"{path}[]", assumed)
        return found

    def _fields(self, written: Schema, read: Schema, path: str, assumed: Assumed) -> list[Obstacle]:
        found: list[Obstacle] = []
        fields = written.get("properties", {})
        for name, schema in read.get("properties", {}).items():
            nested = _joined(path, name)
            needed = name in read.get("required", ())
            if name in fields:
                found += self.obstacles(fields[name], schema, nested, assumed)
                if needed and name not in written.get("required", ()):
                    found.append(Obstacle(nested, OPTIONAL, REQUIRED))
            elif needed:
                found.append(Obstacle(nested, ABSENT, REQUIRED))
            else:
                for rest in undeclared(written):
                    found += self.obstacles(_as_schema(rest), schema, nested, assumed)
        for name in fields:
            if name not in read.get("properties", {}):
                found += self._other_field(fields[name], read, _joined(path, name), assumed)
        return found + self._other_fields(written, read, path, assumed)

    def _other_field(
        self, schema: Schema, read: Schema, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        """Look at a field that is written and that the reader does not declare."""
        allowed = read.get("additionalProperties", "patternProperties" not in read)
        if allowed is False:
            return [Obstacle(path, REQUIRED, ABSENT)]
        return self.obstacles(schema, _as_schema(allowed), path, assumed)

    def _other_fields(
        self, written: Schema, read: Schema, path: str, assumed: Assumed
    ) -> list[Obstacle]:
        """Look at the names and values of all fields that the writer does not declare."""
        found: list[Obstacle] = []
        patterns, known = (each.get("patternProperties", {}) for each in (written, read))
        nested = f"{path}{{}}"
        if patterns.keys() == known.keys() and len(patterns) == len(undeclared(written)):
            for pattern, values in patterns.items():
                found += self.obstacles(values, known[pattern], nested, assumed)
        else:
            for rest in undeclared(written):
                found += self._other_field(_as_schema(rest), read, nested, assumed)
        for keyword in ("propertyNames", "x-keys"):
            if keyword in read:
                names = _names(written, keyword)
                found += self.obstacles(names, read[keyword], path + "{key}", assumed)
        return found


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    while "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        beside = without(schema, "$ref")
        schema = target if beside.keys() <= ANNOTATIONS else {**beside, "allOf": [target]}
    return schema


def _difference(written: Schema, read: Schema, path: str) -> Obstacle:
    return Obstacle(path, described(written), described(read))


def _as_schema(schema: Schema | bool) -> Schema:
    if isinstance(schema, bool):
        return _ANYTHING if schema else _NOTHING
    return schema


def _item(schema: Schema, at: int) -> Schema:
    firsts = schema.get("prefixItems", ())
    return _as_schema(firsts[at] if at < len(firsts) else schema.get("items", True))


def _names(written: Schema, keyword: str) -> Schema:
    """Return a schema of the names of the written fields."""
    if not undeclared(written):
        return {"enum": list(written.get("properties", ()))}
    string: Schema = {"type": "string"}
    return string if "properties" in written else written.get(keyword, string)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
