"""The keywords of JSON Schema, apart from those that nest schemas: what they allow, in comparison."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

Schema = dict[str, Any]

# They do not affect which messages are valid.
ANNOTATIONS = {
    *("title", "description", "examples", "example", "default", "deprecated"),
    *("readOnly", "writeOnly", "$comment", "$schema", "$id", "$defs", "discriminator", "x-tags"),
}
# Those that are compared by their meaning. All others have to be equal.
_UNDERSTOOD = {
    *("$ref", "type", "enum", "const", "anyOf", "oneOf", "allOf"),
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("x-keys", "x-allow-inf-nan", "items", "prefixItems", "format", "multipleOf"),
    *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
}
# Beside others that differ, they mean something else.
_INTERWOVEN = {
    *("contains", "minContains", "maxContains", "if", "then", "else"),
    *("unevaluatedProperties", "unevaluatedItems"),
}
_SIZES = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
# A keyword that says nothing about values of other types.
_OF_TYPE = {
    **{size: kind for kind, sizes in _SIZES.items() for size in sizes},
    **{"pattern": "string", "uniqueItems": "array"},
}
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_LIMITS = ((1, ("minimum", "exclusiveMinimum")), (-1, ("maximum", "exclusiveMaximum")))
# A float holds each integer up to this one exactly.
_EXACT = 2**53

ABSENT = "absent"
OPTIONAL = "optional"
REQUIRED = "required"


class Obstacle(NamedTuple):
    """A reason why a written value may not be readable, with both sides' word for it."""

    path: str
    written: str
    read: str
    subject: str = ""

    def as_change_of_writer(self) -> str:
        """Describe it for a writer that changed and a reader that did not."""
        texts = {
            (ABSENT, REQUIRED): "is gone",
            (OPTIONAL, REQUIRED): "may be missing",
            (REQUIRED, ABSENT): "is new, and readers allow no other fields",
        }
        return self._text(texts, self.read, self.written)

    def as_change_of_reader(self) -> str:
        """Describe it for a reader that changed and a writer that did not."""
        texts = {
            (ABSENT, REQUIRED): "is new, and has no default",
            (OPTIONAL, REQUIRED): "was not always there, and has no default",
            (REQUIRED, ABSENT): "is gone, and no other fields are allowed",
        }
        return self._text(texts, self.written, self.read)

    def _text(self, texts: dict[tuple[str, str], str], before: str, after: str) -> str:
        text = texts.get((self.written, self.read))
        if text is None:
            text = f"{self.subject} was {before}, is {after}".strip()
        return f"{self.path or 'the event'}: {text}"


def compared(kind: str, written: Schema, read: Schema, path: str) -> Iterator[Obstacle]:
    """Compare what both sides say about values of one type, but not about what is inside."""
    least, most = _SIZES.get(kind, ("", ""))
    lowest, highest = _sizes(kind, written)
    if lowest < read.get(least, 0):
        yield _bound(path, least, written, read)
    if highest > read.get(most, math.inf):
        yield _bound(path, most, written, read)
    for keyword in sorted(read.keys() - ANNOTATIONS - _UNDERSTOOD - {least, most}):
        if _OF_TYPE.get(keyword, kind) == kind and not _is_alike(keyword, written, read):
            yield _bound(path, keyword, written, read)
    if read.get("format") == "decimal" and "x-allow-inf-nan" in written.keys() - read.keys():
        yield _bound(path, "x-allow-inf-nan", written, read)
    if "format" in read and not _is_of_format(written.get("format"), read["format"]):
        yield _bound(path, "format", written, read)
    if kind in ("integer", "number"):
        yield from _numbers(kind, written, read, path)


def _is_alike(keyword: str, written: Schema, read: Schema) -> bool:
    # The same reference may mean another schema on the other side.
    comparable = keyword not in _INTERWOVEN and '"$ref"' not in json.dumps(read[keyword])
    return comparable and written.get(keyword) == read[keyword]


def _is_of_format(written: str | None, read: str) -> bool:
    return written == read or (
        read == "uuid" and re.fullmatch(r"uuid\d", written or "") is not None
    )


def _sizes(kind: str, written: Schema) -> tuple[float, float]:
    least, most = _SIZES.get(kind, ("", ""))
    lowest, highest = written.get(least, 0), written.get(most, math.inf)
    if kind == "object":
        lowest = max(lowest, len(written.get("required", ())))
        if not undeclared(written):
            highest = min(highest, len(written.get("properties", ())))
    return lowest, highest


def _numbers(kind: str, written: Schema, read: Schema, path: str) -> Iterator[Obstacle]:
    whole = kind == "integer"
    for sign, keywords in _LIMITS:
        ours, theirs = (_limit(each, keywords, sign, whole) for each in (written, read))
        if ours < theirs:
            yield _bound(path, next(key for key in keywords[::-1] if key in read), written, read)
        elif whole and "integer" not in kinds_of(read) and ours[0] < -_EXACT:
            yield Obstacle(path, "integer beyond 2**53", described(read))
    factor = read.get("multipleOf")
    if factor is not None and not _is_multiple(written.get("multipleOf"), factor):
        yield _bound(path, "multipleOf", written, read)


def _limit(schema: Schema, keywords: tuple[str, str], sign: int, whole: bool) -> tuple[float, bool]:
    """Return the lower bound of the values times `sign`, and whether it is excluded."""
    limits = [
        (sign * schema[keyword], keyword == keywords[1])
        for keyword in keywords
        if math.isfinite(schema.get(keyword, math.inf))
    ]
    if whole:
        limits = [
            (math.floor(limit) + 1 if excluded else math.ceil(limit), False)
            for limit, excluded in limits
        ]
    return max(limits, default=(-math.inf, False))


def _is_multiple(written: float | None, read: float) -> bool:
    if written is None or written == read:
        return written is not None
    # Of fractions that a float does not hold exactly, multiples of one need not be of the other.
    numbers = Fraction(written), Fraction(read)
    return all(each.denominator == 1 for each in numbers) and numbers[0] % numbers[1] == 0


def _bound(path: str, keyword: str, written: Schema, read: Schema) -> Obstacle:
    ours, theirs = (
        json.dumps(each[keyword]) if keyword in each else "not set" for each in (written, read)
    )
    return Obstacle(path, ours, theirs, keyword)


def admits(read: Schema, value: Any) -> bool:
    """Return whether a schema without alternatives surely reads one value."""
    allowed = values_of(read)
    if allowed is not None:
        return json.dumps(value) in [json.dumps(each) for each in allowed]
    kind = _kind_of(value)
    exact: Schema = {}
    if kind in ("array", "object") or not reads_kind(read, kind):
        return False
    if kind == "string":
        exact = {"minLength": len(value), "maxLength": len(value)}
    elif kind in ("integer", "number"):
        exact = {"minimum": value, "maximum": value, "multipleOf": value}
    return next(compared(kind, exact, read, ""), None) is None


def values_of(schema: Schema) -> list[Any] | None:
    """Return the only values that are possible, if they are listed."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def kinds_of(schema: Schema) -> list[str]:
    """Return the types of the values that are possible."""
    kinds, values = schema.get("type"), values_of(schema)
    if kinds is not None:
        return [kinds] if isinstance(kinds, str) else list(kinds)
    if values is not None:
        return list(dict.fromkeys(_kind_of(each) for each in values))
    return list(_TYPES)


def reads_kind(read: Schema, kind: str) -> bool:
    known = kinds_of(read)
    return kind in known or (kind == "integer" and "number" in known)


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def parts_of(schema: Schema) -> list[Schema]:
    """Divide a schema by its values, else by its types."""
    values = values_of(schema)
    if values is None:
        return [{**schema, "type": kind} for kind in kinds_of(schema)]
    return [{"const": value, "type": _kind_of(value)} for value in values]


def without(schema: Schema, *keywords: str) -> Schema:
    return {name: value for name, value in schema.items() if name not in keywords}


def undeclared(written: Schema) -> list[Schema | bool]:
    """Return the schemas of the written fields that are not declared one by one."""
    patterns = written.get("patternProperties", {})
    rest = written.get("additionalProperties", not patterns and "properties" not in written)
    return [*patterns.values(), *([] if rest is False else [rest])]


def described(schema: Schema | bool) -> str:
    """Describe the type of a schema in a few words."""
    if isinstance(schema, bool):
        return "anything" if schema else "nothing"
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    values = values_of(schema)
    if values is not None:
        return _or(json.dumps(value) for value in values)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return _or(described(member) for member in schema[union])
    kinds = schema.get("type", "anything")
    name = _or(kinds) if isinstance(kinds, list) else str(kinds)
    if name == "object" and "properties" in schema:
        return str(schema.get("title", name))
    if name == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {described(schema['additionalProperties'])}"
    if name == "array" and "items" in schema:
        return f"array of {described(schema['items'])}"
    if name == "array" and "prefixItems" in schema:
        return f"array of {', '.join(described(each) for each in schema['prefixItems'])}"
    return f"{name} ({schema['format']})" if "format" in schema else name


def _or(names: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(names)) or "nothing"
