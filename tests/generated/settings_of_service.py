"""Run inside a rendered service: its settings and their defaults, as JSON."""

import json
from importlib import import_module
from pkgutil import walk_packages

from pydantic import SecretStr

import app
from app.config import EnvSettings


def shown(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


for module in walk_packages(app.__path__, "app."):
    import_module(module.name)

settings = {
    name.upper(): shown(field.get_default(call_default_factory=True, validated_data={}))
    for kind in EnvSettings.__subclasses__()
    for name, field in kind.model_fields.items()
}
print(json.dumps(settings))
