"""Run inside a rendered service: print the names of its metrics, one a line."""

from importlib import import_module
from pkgutil import walk_packages

from prometheus_client import REGISTRY

import app

OTHERS = ("python_", "process_")

for module in walk_packages(app.__path__, "app."):
    import_module(module.name)
for metric in REGISTRY.collect():
    if not metric.name.startswith(OTHERS):
        print(f"{metric.name}_total" if metric.type == "counter" else metric.name)
