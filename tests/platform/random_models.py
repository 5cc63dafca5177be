"""Pairs of pydantic models made at random, the second one a change of the first, and their messages."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import reduce
from operator import or_
from random import Random
from typing import Annotated, Any, Literal
from uuid import UUID

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import (
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    StringConstraints,
    create_model,
)


@dataclass(frozen=True)
class Shape:
    """A type: its name, its limits, and the types inside it."""

    name: str
    limits: tuple[Any, ...] = ()
    inside: tuple["Shape", ...] = ()


LIMITS = (None, -10, 0, 1, 5)
SIZES = (None, 0, 1, 2)
WORDS = ("cash", "card", "voucher")
NUMBERS = (0, 5, True, None)
FIELDS = ("a", "b", "c")
LEAVES = {
    "integer": (LIMITS, LIMITS, (None, None, 2, 4)),
    "float": (LIMITS, LIMITS, (True, False)),
    "text": (SIZES, SIZES, (None, None, "^[a-c]+$", "^a", "strip")),
    "decimal": (LIMITS, (None, 2, 3)),
    "time": ((True, False),),
    "url": ((True, False),),
    **{"boolean": (), "nothing": (), "uuid": (), "day": ()},
}
KEYS = ("text", "integer", "uuid", "word", "pattern")
NESTED = {
    "list": (SIZES, SIZES),
    "set": (SIZES, SIZES),
    "dict": (KEYS,),
    "model": ((True, False, False), *((True, False),) * 3),
    **{"tuple": (), "optional": (), "union": (), "tagged": (), "recursive": ()},
}
SEVERAL = ("tuple", "union", "tagged", "model")


def drawn_pairs(count: int = 1000) -> list[tuple[Shape, Shape, Random]]:
    """Let Hypothesis draw pairs, the same in each run, each with the source of its messages."""
    found: list[tuple[Shape, Shape, Random]] = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # Of bits, because numbers are also drawn from those in the modules that happen to be imported.
    @given(st.lists(st.booleans(), min_size=64, max_size=64))
    def draw(bits: list[bool]) -> None:
        random = Random("".join("01"[bit] for bit in bits))
        found.append((*pair(random), random))

    draw()
    return found


def pair(random: Random) -> tuple[Shape, Shape]:
    """Make a shape, and another by one or two changes."""
    fields = tuple(shape(random, 2) for _ in range(random.randint(1, 3)))
    new = old = Shape("model", (False, True, True, False), fields)
    while new == old or not random.randrange(3):
        new = inside_changed(random, new)
    return old, new


def shape(random: Random, depth: int) -> Shape:
    if not depth or random.random() < 0.4:
        return leaf(random)
    name = random.choice([*NESTED])
    if name == "set":
        return Shape(name, limits(random, name), (leaf(random),))
    count = random.randint(1, 3) if name in SEVERAL else 1
    return Shape(name, limits(random, name), tuple(shape(random, depth - 1) for _ in range(count)))


def leaf(random: Random) -> Shape:
    name = random.choice([*LEAVES, "word", "number"])
    return Shape(name, limits(random, name))


def limits(random: Random, name: str) -> tuple[Any, ...]:
    if name in ("word", "number"):
        among = WORDS if name == "word" else NUMBERS
        return tuple(random.sample(among, random.randint(1, len(among))))
    choices: tuple[tuple[Any, ...], ...] = (LEAVES | NESTED)[name]
    return possible(name, tuple(random.choice(each) for each in choices))


def possible(name: str, drawn: tuple[Any, ...]) -> tuple[Any, ...]:
    """Drop an upper limit that would leave no value."""
    if name not in ("integer", "float", "text", "list", "set") or None in drawn[:2]:
        return drawn
    least = drawn[0] + (name in ("integer", "float"))
    return drawn if drawn[1] >= least else (drawn[0], None, *drawn[2:])


def inside_changed(random: Random, old: Shape) -> Shape:
    at = random.randrange(len(old.inside))
    new = changed(random, old.inside[at])
    return replace(old, inside=(*old.inside[:at], new, *old.inside[at + 1 :]))


def changed(random: Random, old: Shape) -> Shape:
    if old.inside and random.random() < 0.7:
        return inside_changed(random, old)
    kind = random.choice(
        ["limits", "limits", "one limit", "more", "less", "wrap", "unwrap", "other"]
    )
    if kind == "limits":
        return replace(old, limits=limits(random, old.name))
    if kind == "one limit" and old.limits and old.name in LEAVES | NESTED:
        at = random.randrange(len(old.limits))
        new = (*old.limits[:at], limits(random, old.name)[at], *old.limits[at + 1 :])
        return replace(old, limits=possible(old.name, new))
    if kind == "more" and old.name in SEVERAL:
        return replace(old, inside=(*old.inside, leaf(random))[:3])
    if kind == "less" and len(old.inside) > 1:
        return replace(old, inside=old.inside[:-1])
    if kind == "unwrap" and old.name in ("optional", "union"):
        return old.inside[0]
    if kind == "wrap":
        return Shape(random.choice(["optional", "union"]), (), (old,))
    return shape(random, 1) if kind == "other" else old


def model_of(shape: Shape, name: str = "Message", **more: Any) -> type[BaseModel]:
    """Make the model of a shape of the name `model`."""
    closed, *needed = shape.limits or (False, True, True, True)
    fields: dict[str, Any] = dict(more)
    for field, inner, always in zip(FIELDS, shape.inside, needed, strict=False):
        default = None if inner.name == "optional" and not always else ...
        fields[field] = (annotation(inner), default)
    config = ConfigDict(extra="forbid" if closed else "ignore", allow_inf_nan=False)
    made: type[BaseModel] = create_model(name, __config__=config, **fields)
    return made


# Made while the tests run, which a type checker cannot follow.
FINITE = ConfigDict(allow_inf_nan=False)
CONTAINERS: dict[str, Any] = {"list": list, "set": set, "tuple": tuple, "dict": dict}
LITERAL: Any = Literal


def annotation(shape: Shape) -> Any:
    """Return the type that a shape stands for."""
    inside = [annotation(inner) for inner in shape.inside]
    if shape.name in ("integer", "float", "decimal", "text"):
        return limited(shape)
    if shape.name in ("word", "number"):
        return LITERAL[shape.limits]
    if shape.name in ("list", "set"):
        low, high = shape.limits
        many = CONTAINERS[shape.name][inside[0]]
        return Annotated[many, Field(min_length=low, max_length=high)]
    if shape.name == "tuple":
        return CONTAINERS["tuple"][tuple(inside)]
    if shape.name == "dict":
        return CONTAINERS["dict"][KEY_TYPES[shape.limits[0]], inside[0]]
    if shape.name == "optional":
        return inside[0] | None
    if shape.name == "union":
        return reduce(or_, inside)
    return model_or_leaf(shape)


def model_or_leaf(shape: Shape) -> Any:
    if shape.name == "model":
        return model_of(shape, "Inner")
    if shape.name == "tagged":
        variants = [
            model_of(Shape("model", (), (inner,)), word, kind=(LITERAL[word], word))
            for word, inner in zip(WORDS, shape.inside, strict=False)
        ]
        if len(variants) == 1:
            return variants[0]
        return Annotated[reduce(or_, variants), Field(discriminator="kind")]
    if shape.name == "recursive":
        fields: dict[str, Any] = {"rest": ("Node | None", None)}
        value_of = (annotation(shape.inside[0]), ...)
        node = create_model("Node", __config__=FINITE, value=value_of, **fields)
        node.model_rebuild(_types_namespace={"Node": node})
        return node
    exact = {"uuid": UUID, "day": date, "boolean": bool, "nothing": type(None)}
    if shape.name == "time":
        return AwareDatetime if shape.limits[0] else datetime
    if shape.name == "url":
        return HttpUrl if shape.limits[0] else AnyUrl
    return exact[shape.name]


def limited(shape: Shape) -> Any:
    low, high, *rest = (*shape.limits, None)
    if shape.name == "integer":
        return Annotated[int, Field(ge=low, lt=high, multiple_of=rest[0])]
    if shape.name == "float":
        return Annotated[float, Field(ge=low, le=high) if rest[0] else Field(gt=low, lt=high)]
    if shape.name == "decimal":
        return Annotated[Decimal, Field(ge=low, decimal_places=high)]
    if rest[0] == "strip":
        return Annotated[str, StringConstraints(strip_whitespace=True, min_length=low)]
    return Annotated[str, Field(min_length=low, max_length=high, pattern=rest[0])]


KEY_TYPES: dict[str, Any] = {
    "text": str,
    "integer": int,
    "uuid": UUID,
    "word": LITERAL[WORDS],
    "pattern": Annotated[str, Field(pattern="^[ab]$")],
}
TEXTS = ("", " ", "a", "b", "c", "ab", "abc", "cash", "1", "x", "a\n", "ä")
WHOLE = (-12, -11, -4, 0, 1, 2, 3, 4, 5, 6, 8)


def value(random: Random, shape: Shape) -> Any:
    """Make a value of a shape, which its limits may not allow."""
    if shape.name in LEAVES or shape.name in ("word", "number"):
        return value_of_leaf(random, shape)
    if shape.name == "optional" and not random.randrange(3):
        return None
    if shape.name in ("optional", "union"):
        return value(random, random.choice(shape.inside))
    if shape.name == "tuple":
        return [value(random, inner) for inner in shape.inside]
    if shape.name == "model":
        return {name: value(random, of) for name, of in zip(FIELDS, shape.inside, strict=False)}
    if shape.name == "tagged":
        at = random.randrange(min(len(WORDS), len(shape.inside)))
        return {"kind": WORDS[at], "a": value(random, shape.inside[at])}
    if shape.name == "recursive":
        node = {"value": value(random, shape.inside[0])}
        return node if random.randrange(3) else {**node, "rest": value(random, shape)}
    many = [value(random, shape.inside[0]) for _ in range(random.randint(0, 3))]
    if shape.name == "dict":
        return {key(random, shape.limits[0]): each for each in many}
    return many


def key(random: Random, name: str) -> Any:
    if name == "integer":
        return random.choice(WHOLE)
    if name == "uuid":
        return UUID(int=random.getrandbits(128))
    return random.choice({"text": TEXTS, "word": WORDS, "pattern": ("a", "b")}[name])


def value_of_leaf(random: Random, shape: Shape) -> Any:
    if shape.name in ("word", "number"):
        return random.choice(shape.limits)
    if shape.name == "time":
        moment = datetime(2025, 1, 31, random.randrange(24), tzinfo=UTC)
        return moment if shape.limits[0] or random.randrange(2) else moment.replace(tzinfo=None)
    if shape.name == "url":
        return "https://a.example" if shape.limits[0] or random.randrange(2) else "ftp://a.example"
    among: dict[str, tuple[Any, ...]] = {
        "integer": (*WHOLE, 10**400),
        "float": (*map(float, WHOLE), 0.5, 1.25),
        "decimal": (*map(Decimal, WHOLE), Decimal("0.25"), Decimal("1.125"), Decimal("0.0001")),
        "text": TEXTS,
        "boolean": (True, False),
        "nothing": (None,),
        "uuid": (UUID(int=random.getrandbits(128)),),
        "day": (date(2025, 1, 31),),
    }
    return random.choice(among[shape.name])
