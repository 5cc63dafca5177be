"""An area's sides as bars with their spread: an SVG without scripts, readable on light and dark."""

from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby

from benchmarks.results import Area, Samples, number

WIDTH, LABEL, BAR, GAP = 800, 350, 14, 24
END = WIDTH - 110  # room for the longest bar's figure

# Both schemes are in the file, because an <img> cannot take the page's colours.
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 15px }
    .unit { font-weight: 600; fill: #59636e }
    .failed { fill: #b42318 }
    .ours { fill: #1a7f5a }
    .other { fill: #8b949e }
    .spread { stroke: #1f2328; stroke-width: 1.5 }
    .ground { fill: #ffffff }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 }
        .unit { fill: #9198a1 }
        .failed { fill: #ff7b72 }
        .ours { fill: #3fb98a }
        .other { fill: #6e7681 }
        .spread { stroke: #e6edf3 }
        .ground { fill: #0d1117 }
    }
"""

LEGEND = [
    f'<rect class="ours" x="{LABEL}" y="13" width="12" height="12" rx="2"/>',
    f'<text x="{LABEL + 18}" y="24">the service</text>',
    f'<rect class="other" x="{LABEL + 110}" y="13" width="12" height="12" rx="2"/>',
    f'<text x="{LABEL + 128}" y="24">floor or peer; the line is the spread</text>',
]

# Sides whose names begin like this are not ours.
OTHERS = (
    "plain aiokafka",
    "FastStream",
    "confluent-kafka",
    "faststream-outbox",
    "eventsourcing",
    "fastapi-template",
    "one transaction",
    "one row",
    "10 ms, one transaction",
    "10 ms, FastStream",
    "plain send",
    "floor",
    "one INSERT",
    "one file",
    "bare FastAPI",
    "no publishing",
    "bare process",
)


def svg(area: Area) -> str:
    """Bars of one unit share a scale from zero, so their lengths can be compared."""
    shown = {name: samples for name, samples in area.sides.items() if "growth" not in name}
    parts = [f'<text class="title" x="8" y="24">{escape(area.title)}</text>', *LEGEND]
    y = 56
    for unit, group in groupby(shown.items(), key=lambda item: item[1].unit):
        sides = list(group)
        most = max((max(samples.spread, default=0.0) for _, samples in sides), default=0.0) or 1.0
        parts.append(f'<text class="unit" x="{LABEL}" y="{y}">{escape(unit)}</text>')
        y += 10
        for name, samples in sides:
            parts += bar(name, samples, y, (END - LABEL) / most)
            y += GAP
        y += 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}"'
        f' height="{y}" role="img" aria-label="{escape(area.title)}">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{y}" rx="6"/>\n' + lines(parts) + "</svg>\n"
    )


def bar(name: str, samples: Samples, y: int, scale: float) -> Iterator[str]:
    middle = y + BAR / 2
    yield f'<text x="{LABEL - 8}" y="{middle + 4:g}" text-anchor="end">{escape(name)}</text>'
    if samples.median is None:
        yield f'<text class="failed" x="{LABEL}" y="{middle + 4:g}">failed</text>'
        return
    whose = "other" if name.startswith(OTHERS) else "ours"
    length = samples.median * scale
    low, high = (LABEL + value * scale for value in samples.spread)
    yield f'<rect class="{whose}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
    yield f'<path class="spread" d="M{low:.1f} {middle:g}H{high:.1f}"/>'
    end = max(high, LABEL + length) + 6
    yield f'<text x="{end:.1f}" y="{middle + 4:g}">{number(samples.median)}</text>'


def lines(parts: Iterable[str]) -> str:
    return "".join(f"{part}\n" for part in parts)
