"""Bodies of messages for people: indented JSON, in which the values of some fields may be hidden."""

import json
from collections.abc import Collection
from typing import Any

MASK = "***"


def format_body(value: bytes | None, masked: Collection[str] = ()) -> str:
    """Format a message's value: indented if it is JSON, without the values of `masked` fields."""
    if value is None:
        return "(no value)"
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        # Fields cannot be found in other formats, so nothing of them is shown.
        return MASK if masked else value.decode("utf-8", "backslashreplace")
    return json.dumps(mask(found, masked), indent=2, ensure_ascii=False)


def mask(value: Any, names: Collection[str]) -> Any:
    """Replace the values of the fields `names`, at every depth."""
    if isinstance(value, dict):
        return {k: MASK if k in names else mask(of, names) for k, of in value.items()}
    if isinstance(value, list):
        return [mask(of, names) for of in value]
    return value
