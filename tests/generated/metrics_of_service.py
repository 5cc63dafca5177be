"""Run inside a rendered service: the names of its metrics, one a line."""

from prometheus_client import REGISTRY

from app import cli, main  # all that measures is imported with them

OTHERS = ("python_", "process_")

assert cli.COMMANDS
assert main.create_app
for metric in REGISTRY.collect():
    if not metric.name.startswith(OTHERS):
        print(f"{metric.name}_total" if metric.type == "counter" else metric.name)
