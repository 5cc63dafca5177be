"""Measurements with their medians, ratios and goals."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Figures(NamedTuple):
    """A rate, and the processor time of one in microseconds."""

    rate: float
    cpu_us: float


@dataclass
class Samples:
    """The results of one side's rounds. `failed` has the reason of missing ones."""

    unit: str
    values: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    failed: str = ""

    def add(self, measured: float | Figures) -> None:
        if isinstance(measured, Figures):
            self.cpu_us.append(measured.cpu_us)
            measured = measured.rate
        self.values.append(measured)

    @property
    def median(self) -> float | None:
        """The median; None if the side failed, because a figure of some rounds would mislead."""
        return None if self.failed or not self.values else statistics.median(self.values)

    @property
    def spread(self) -> list[float]:
        return [min(self.values), max(self.values)] if self.values else []


@dataclass(frozen=True)
class Comparison:
    """Our side compared with another one, or with our own side with less work (`growth`).

    Of several sides the one with the highest median counts. `goal` is a bound of the ratio, such as
    ">= 0.8".
    """

    name: str
    ours: str | Sequence[str]
    other: str | Sequence[str]
    goal: str = ""
    growth: bool = False


@dataclass
class Area:
    """One subject: its method, its sides, and their comparisons.

    `lines` are the most expensive ones of the service, with the processor time of one request (or
    whatever the area is about) in microseconds, and its share.
    """

    name: str
    title: str
    method: str
    comparisons: list[Comparison]
    sides: dict[str, Samples] = field(default_factory=dict)
    lines: list[tuple[str, float, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Area":
        comparisons = [Comparison(**comparison) for comparison in data["comparisons"]]
        sides = {name: Samples(**samples) for name, samples in data["sides"].items()}
        lines = [(place, micros, share) for place, micros, share in data.get("lines", [])]
        return cls(data["name"], data["title"], data["method"], comparisons, sides, lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the comparisons whose sides took part."""
        for comparison in self.comparisons:
            ours, other = self._best(comparison.ours), self._best(comparison.other)
            if ours and other:
                yield self._row(comparison, ours, other)

    def _best(self, names: str | Sequence[str]) -> str | None:
        known = [
            name for name in ([names] if isinstance(names, str) else names) if name in self.sides
        ]
        return max(known, key=lambda name: self.sides[name].median or 0.0, default=None)

    def _row(self, comparison: Comparison, ours: str, other: str) -> dict[str, Any]:
        mine, theirs = self.sides[ours], self.sides[other]
        ratio = mine.median / theirs.median if mine.median is not None and theirs.median else None
        return {
            "area": self.name,
            "name": comparison.name,
            "ours": mine.median,
            "other": theirs.median,
            "unit": mine.unit,
            "ratio": ratio,
            "goal": comparison.goal,
            "met": is_met(ratio, comparison.goal),
            "sides": [ours, other],
            "spread": {"ours": mine.spread, "other": theirs.spread},
            "growth": comparison.growth,
        }


def is_met(ratio: float | None, goal: str) -> bool | None:
    """Return whether `ratio` meets `goal`; None without a goal. A side that failed has not met it."""
    if not goal:
        return None
    relation, _, bound = goal.partition(" ")
    if relation not in {">=", "<="}:
        raise ValueError(f"{goal!r} is no goal: write '>= 0.8' or '<= 2'")
    if ratio is None:
        return False
    return ratio >= float(bound) if relation == ">=" else ratio <= float(bound)


def results(
    areas: Sequence[Area], machine: Mapping[str, object], date: str, commit: str, **how: object
) -> dict[str, Any]:
    """Return the content of latest.json. `how` has the options and the versions of the peers."""
    return {
        "machine": machine,
        "date": date,
        "commit": commit,
        **how,
        "rows": [row for area in areas for row in area.rows()],
        "areas": [area.as_json() for area in areas],
    }


def number(value: float | None) -> str:
    """Format a figure with its significant digits."""
    if value is None:
        return "failed"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
