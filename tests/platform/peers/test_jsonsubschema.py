"""Our verdicts beside those of jsonsubschema, which `test_checks.py` installs for this module."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonsubschema import isSubschema
from jsonsubschema.exceptions import UnsupportedRecursiveRef
from pydantic import BaseModel, ValidationError
from random_models import Shape, drawn_pairs, model_of, value

from app.platform.events.compatibility import obstacles
from app.platform.events.json_schema import ExactJsonSchema
from app.platform.events.keywords import Obstacle, Schema

MESSAGES = 200
PATIENCE = 2  # seconds; for some patterns it needs minutes
# docs/decisions/0034-compatibility.md explains each.
EXPLAINED = {
    "both say yes",
    "both say no",
    "it cannot follow recursive models",
    "it makes an invalid schema, and fails",
    "it fails at a union of numbers without a lower limit",
    "it accepts what the model refuses",
    "it ignores formats",
    "it ignores keys, and rules without a keyword",
    "it ignores formats and rules inside a union",
    "it takes false for 0",
    "it looks at the items of arrays that must be empty",
    "it takes too long",
}


class TooLong(BaseException):
    """No Exception, because the library's own code catches those."""


def test_every_difference_from_jsonsubschema_is_explained() -> None:
    pairs = drawn_pairs()
    seen = Counter(verdicts(*pair) for pair in pairs)
    assert set(seen) <= EXPLAINED, seen
    assert seen["both say yes"] > len(pairs) / 10, seen
    assert seen["it accepts what the model refuses"], seen
    assert sum(seen.values()) == len(pairs) == 1000


def verdicts(old: Shape, new: Shape, random: Random) -> str:
    reader, writer = model_of(old), model_of(new)
    schemas = [
        model.model_json_schema(schema_generator=ExactJsonSchema, mode="serialization")
        for model in (writer, reader)
    ]
    found = obstacles(*schemas)
    try:
        with limited(PATIENCE):
            theirs = isSubschema(draft_4(schemas[0], written=True), draft_4(schemas[1]))
    except UnsupportedRecursiveRef:
        return "it cannot follow recursive models"
    except TooLong:
        return "it takes too long"
    except SchemaError:
        return "it makes an invalid schema, and fails"
    except ValueError as error:
        if "truth value of a bound" not in str(error):
            raise
        return "it fails at a union of numbers without a lower limit"
    if theirs != bool(found):
        return "both say yes" if theirs else "both say no"
    if not theirs:
        return "it looks at the items of arrays that must be empty" if has_empty(schemas) else "?"
    messages = (value(random, new) for _ in range(MESSAGES))
    if any(is_refused(message, writer, reader) for message in messages):
        return "it accepts what the model refuses"
    return reason(found, schemas[1])


def is_refused(message: Any, writer: type[BaseModel], reader: type[BaseModel]) -> bool:
    try:
        body = writer.model_validate(message).model_dump_json()
    except ValidationError:
        return False
    try:
        reader.model_validate_json(body)
    except ValidationError:
        return True
    return False


def reason(found: list[Obstacle], read: Schema) -> str:
    if all(one.subject == "format" for one in found):
        return "it ignores formats"
    if all("{" in one.path or one.subject.startswith(("x-", "format")) for one in found):
        return "it ignores keys, and rules without a keyword"
    if not any(one.subject for one in found):
        if any("boolean" in one.written for one in found):
            return "it takes false for 0"
        if "'x-" in str(read) or "'format'" in str(read):
            return "it ignores formats and rules inside a union"
    return f"? {found}"


def has_empty(schemas: list[Schema]) -> bool:
    return "'maxItems': 0" in str(schemas[0])


def draft_4(node: Any, written: bool = False) -> Any:
    """Translate a schema to the draft that it knows; a written object has no other fields."""
    if isinstance(node, list):
        return [draft_4(inner, written) for inner in node]
    if not isinstance(node, dict):
        return node
    schema = {key: value for key, value in node.items() if key not in ("default", "discriminator")}
    for limit in ("minimum", "maximum"):
        excluded = f"exclusive{limit.capitalize()}"
        if excluded in schema:
            schema[limit], schema[excluded] = schema[excluded], True
    for ours, theirs in {"prefixItems": "items", "oneOf": "anyOf"}.items():
        if ours in schema:
            schema[theirs] = schema.pop(ours)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    if written and "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return {key: inside(key, value, written) for key, value in schema.items()}


def inside(keyword: str, value: Any, written: bool) -> Any:
    if keyword in ("properties", "patternProperties", "$defs"):
        return {name: draft_4(schema, written) for name, schema in value.items()}
    return value if keyword == "enum" else draft_4(value, written)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)  # again, if a destructor swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
