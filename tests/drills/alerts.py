"""The alerts that the documentation recommends, and whether they fire on what processes export."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from drills.service import Process

# Code in a page that compares with a number, or calls a function of PromQL.
_EXPRESSION = re.compile(
    r"`((?:absent|increase|rate|sum|max|min|avg|count)\b ?[^`\n]*\([^`\n]*"
    r"|[a-z_]+(?:\{[^`\n]*\})? ?(?:[<>]=?|[=!]=) ?\d[^`\n]*)`"
)
_DEAD = re.compile(r"^\| (API|worker|relay) \|(.*)\|$", re.MULTILINE)
_SELECTOR = r'(?P<metric>\w+)(?:\{(?P<label>\w+)="(?P<value>\w+)"\})?'
_MAX = re.compile(r"max(?: by \([a-z, ]+\) )?\((?P<metric>\w+)\) > (?P<limit>\d+)")
_INCREASE = re.compile(r"increase\((?P<metric>\w+)\[\d+[mh]\]\) > (?P<limit>\d+)")
_ABSENT = re.compile(rf"absent\({_SELECTOR}\)")
_EQUAL = re.compile(r"(?P<metric>\w+) == (?P<limit>\d+)")

# The metric, its labels and the target that exports it.
Series = tuple[str, frozenset[tuple[str, str]], str]
Scrape = Mapping[Series, float]


class UnknownForm(Exception):
    """An expression that is not evaluated here: teach `Alert`, or write it in another form."""


@dataclass(frozen=True)
class Alert:
    """An expression of the documentation."""

    expression: str

    @property
    def increasing(self) -> str | None:
        """The counter whose increase is watched."""
        found = _INCREASE.fullmatch(self.expression)
        return found["metric"] if found else None

    def fires(self, before: Scrape, now: Scrape) -> bool:
        """Evaluate as Prometheus does. Raises UnknownForm."""
        if found := _MAX.fullmatch(self.expression):
            return any(value > float(found["limit"]) for value in _of(now, found["metric"]))
        if found := _EQUAL.fullmatch(self.expression):
            return float(found["limit"]) in _of(now, found["metric"])
        if found := _INCREASE.fullmatch(self.expression):
            limit, metric = float(found["limit"]), found["metric"]
            return any(
                series in before and value - before[series] > limit
                for series, value in now.items()
                if series[0] == metric
            )
        if found := _ABSENT.fullmatch(self.expression):
            label = (found["label"], found["value"]) if found["label"] else None
            return not _of(now, found["metric"], label)
        raise UnknownForm(self.expression)


def _of(scrape: Scrape, metric: str, label: tuple[str, str] | None = None) -> list[float]:
    return [
        value
        for (name, labels, _), value in scrape.items()
        if name == metric and (label is None or label in labels)
    ]


def alerts(pages: Iterable[Path]) -> set[Alert]:
    """Every alert of these pages."""
    return {Alert(found) for page in pages for found in _EXPRESSION.findall(page.read_text())}


def alerts_of_death(pages: Iterable[Path]) -> dict[str, set[Alert]]:
    """The alerts that fire when a role is dead, by role, as the tables of these pages say."""
    return {
        role.lower(): {Alert(found) for found in _EXPRESSION.findall(cells)}
        for page in pages
        for role, cells in _DEAD.findall(page.read_text())
    }


async def scrape(processes: Sequence[Process], *, keeps_dead: bool = True) -> dict[Series, float]:
    """The series that Prometheus has of these processes, `up` included.

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
