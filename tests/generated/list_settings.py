"""Run inside a rendered service: print its settings with their defaults, and those read late, as JSON."""

import json
from importlib import import_module
from pkgutil import walk_packages
from typing import get_type_hints

from pydantic import SecretStr

import app
from app import wiring
from app.platform.config import EnvSettings
from app.platform.console.access import ConsoleSettings
from app.platform.runtime import Configuration


def shown(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


for module in walk_packages(app.__path__, "app."):
    import_module(module.name)

defaults = {
    name.upper(): shown(field.get_default(call_default_factory=True, validated_data={}))
    for kind in EnvSettings.__subclasses__()
    for name, field in kind.model_fields.items()
}
at_the_start = {*get_type_hints(Configuration).values(), *wiring.service.settings}
at_the_start.add(ConsoleSettings)  # of the process that has it
kinds = [kind for kind in EnvSettings.__subclasses__() if kind.model_fields]  # that read something
late = [kind.__name__ for kind in kinds if kind not in at_the_start]
print(json.dumps({"defaults": defaults, "late": late}))
