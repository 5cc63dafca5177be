"""Differences between two states of a stream, field by field."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from app.platform.bodies import mask
from app.platform.event_store.category import Category
from app.platform.event_store.store import StreamState

Change = tuple[str, str | None, str | None]
"""A field of the state, with its old and its new value."""


def fields_of(
    category: Category[Any, Any], found: StreamState[Any] | None, masked: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of a state as in JSON, without the values of `masked` ones; none of no state."""
    if found is None:
        return {}
    fields = mask(category.state_adapter.dump_python(found.state, mode="json"), masked)
    return fields if isinstance(fields, dict) else {"state": fields}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the fields whose values differ, and those that do not with None as the old value."""
    for name in dict.fromkeys([*old, *new]):
        before, after = _text(old, name), _text(new, name)
        yield name, None if before == after else before or "", after


def _text(state: Mapping[str, Any], name: str) -> str | None:
    if name not in state:
        return None
    value = state[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
