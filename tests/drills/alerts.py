"""The alerts of `ops/alerts.yml`, evaluated by Prometheus' own code on what processes export."""

import asyncio
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from drills.service import ROOT, Process

RULES = ROOT / "ops" / "alerts.yml"
PAGE = ROOT / "docs" / "operations.md"
_DEAD = re.compile(r"^\| (API|worker|relay) \|(.*)\|$", re.MULTILINE)
_SERVICE = re.compile(r'service="([^"]+)"')
_FIRING = re.compile(r'alertname="(\w+)"')

# What is exported first, and what is exported from then on: long enough for each `for`.
MINUTES_BEFORE, MINUTES_AFTER = 10, 50

# The metric, its labels and the target that exports it.
Series = tuple[str, frozenset[tuple[str, str]], str]
Scrape = Mapping[Series, float]


def watched_counters() -> set[str]:
    """Return the counters whose increase is watched."""
    return set(re.findall(r"increase\((\w+)", RULES.read_text()))


def alerts_of_death() -> dict[str, set[str]]:
    """Return the alerts that fire when a role is dead, by role, as the table of the page says."""
    rows = _DEAD.findall(PAGE.read_text())
    return {role.lower(): set(re.findall(r"`(\w+)`", cells)) for role, cells in rows}


async def firing(before: Scrape, now: Scrape, folder: Path) -> set[str]:
    """Return the alerts that fire in an hour of which the first minutes are as `before`."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    found = _SERVICE.search(RULES.read_text())
    assert found is not None
    series = [
        {"series": _selector(each, found[1]), "values": _values(before.get(each), now.get(each))}
        for each in before.keys() | now.keys()
    ]
    expression = 'count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))'
    none_fires = {"expr": expression, "eval_time": "1h", "exp_samples": []}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [none_fires]}
    file = folder / "alerts_test.yml"
    # JSON is YAML, too.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))
    process = await asyncio.create_subprocess_exec(
        *(promtool, "test", "rules", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    fired = set(_FIRING.findall(output))
    assert (process.returncode == 0) == (not fired), output
    return fired


def _selector(series: Series, service: str) -> str:
    name, labels, target = series
    named = {**dict(labels), "instance": target, "service": service}
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in named.items())}}}"


def _values(before: float | None, now: float | None) -> str:
    first = "_" if before is None else f"{before:f}"
    then = "_" if now is None else f"{now:f}"
    return f"{first}x{MINUTES_BEFORE - 1} {then}x{MINUTES_AFTER}"


async def scrape(processes: Sequence[Process], *, keeps_dead: bool = True) -> dict[Series, float]:
    """Return the series that Prometheus has of these processes, `up` included.

    Configured targets are kept when they are dead; discovery removes them, unless `keeps_dead`.
    """
    series: dict[Series, float] = {}
    async with httpx.AsyncClient(timeout=5) as http:
        for process in processes:
            labels = frozenset({("job", process.role)})
            try:
                text = (await http.get(f"{process.url}/metrics")).text
            except httpx.TransportError:
                if keeps_dead:
                    series["up", labels, process.url] = 0.0
                continue
            series["up", labels, process.url] = 1.0
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    own = labels.union(sample.labels.items())
                    series[sample.name, own, process.url] = sample.value
    return series
