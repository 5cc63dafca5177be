"""The reasons why a stored sample is unreadable."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from app.platform.events.event import EventType


def problems_of(event_type: EventType, sample: Any) -> Iterator[str]:
    """Yield why the event cannot read a message like `sample`, a sentence each."""
    try:
        event_type.model.model_validate_json(json.dumps(sample))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            path = ".".join(str(part) for part in problem["loc"]) or "event"
            hint = _alias_hint(event_type, path, sample) if problem["type"] == "missing" else ""
            yield f"its sample cannot be read: {path}: {problem['msg']}{hint}"


def _alias_hint(event_type: EventType, missing: str, sample: Any) -> str:
    """Say how to mend a field that is read under its alias and written under its own name."""
    for name, field in event_type.model.model_fields.items():
        if field.validation_alias == missing and name in sample:
            return (
                f", because the event writes it as {name}: give the field an `alias`, and the event"
                " `model_config = ConfigDict(serialize_by_alias=True)`"
            )
    return ""
