"""docs/benchmarks.md, from what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.results import Area, number

HEADER = """\
# Benchmarks

Made by `nox -s bench` from [latest.json](../benchmarks/results/latest.json); edit
`benchmarks/report.py`, not this page.

Every area compares sides that do the same work. They run in one process set-up, on one real Apache
Kafka and one real PostgreSQL with fsync on, and take turns: each round measures every side once, in the
other direction every second time. Figures are medians of the rounds, the spread is the least and
the most. Read the ratios rather than the figures: servers, sides and load share the cores of
one machine, so that another machine has other figures, but much the same ratios.

Where there are microseconds, they are what one message, row or event costs the side's own process, or
processes, in processor time, which moves less than the rates when the machine has other work.

A ratio is ours divided by the other's, of rates and of times alike. A side that fails says so instead
of a figure. Topics have three partitions and one replica, and Kafka leaves flushing to the operating system,
as it does by default.

```
nox -s bench                                    # everything; a quarter of an hour with --scale 0.35
nox -s bench -- --area consume --rounds 5 --scale 0.5
nox -s bench -- --quick                         # does it all work: figures mean nothing
```
"""

# What limits each area, as far as profiles tell; the figures are in the tables.
LIMITS = {
    "produce": """\
What the service adds to plain aiokafka is a deadline, the check of each message's size, a typed outcome
for each message and metrics. A single `send` goes a short way of its own, with one timer for the
deadlines of all senders, and costs about 3 us more than aiokafka's `send_and_wait`. All at once it is
ahead: from 100 messages on it makes batches of its own, of up to 256 kB a partition, with one
acknowledgement each, where aiokafka makes a future of every message. librdkafka does in C, and in a
second thread, what aiokafka does in Python.""",
    "consume": """\
What is compared moves: one transaction per message is limited by the commit's fsync, which is quicker on
some disks than on others, and the ratios to it with that. Group commit is limited by one round trip for each
handler's statement, a batch handler by this process' own processor time: decoding and validating
with pydantic, and the inbox row. Lanes overlap waiting. Where handlers wait only for a database on the
same two cores, there is little to overlap; where they wait for something else, lanes gain nearly
their number. So do worker processes: handlers that wait gain nearly the number of processes, and those
that do not gain what the cores have left beside PostgreSQL and Kafka, which on two cores is little.""",
    "outbox": """\
One relay process is limited by its own processor time: to read a row, make a message of it, settle its
outcome and delete it. The sending itself costs it less than plain aiokafka's, message by message.
Relays side by side gain little here: one of them, PostgreSQL and Kafka keep both cores busy. A relay is
woken up by a commit, also of another process, and then rests for 10 to 50 ms before it looks again, the
longer the busier it is, so that more commits share a batch: that is most of the time from commit to
consumer. Memory does not grow with the backlog.""",
    "orders": """\
A request's price is that of its SQL statements and the web framework's. With the outbox there is one
insert more in the same transaction and the encoding of the event; without, an acknowledgement of the
broker is waited for after the commit. The load generator takes a part of the two cores. *outbox* and *cqrs* run
the same code for this request, so the distance between their ratios is how uncertain these are. What
is in the tables already makes no request dearer: an insert and a page of orders each find their place
by an index.""",
    "event_store": """\
A command is limited by the commit's fsync and three round trips; loads by turning JSON into
events, one by one. A snapshot makes a load independent of the length of the stream.""",
    "projection": """\
Validating the events and writing JSON columns through SQLAlchemy is what the projector adds to the
floor. A rebuild reads the states with the ORM, as a projection may be of anything that Python can work out; SQL
alone cannot be reached by that.""",
    "commands": """\
Nearly all of it is imports: Typer, Rich and pydantic for a help text, and the libraries of the whole service
for a command that reads its events and consumers, since the slices that declare them import their
tables and routes, too.""",
    "generation": """\
Most of it is Copier's own start and its git clone of the template; the rest is linear in the number of
files, most of which is Copier's own price for a file, even of one line (*a file more*). An update
renders three times, and has git compare. fastapi-template starts quicker than Copier, and clones
nothing.""",
}

LINEAR = 0.7


def render_report(results: Mapping[str, Any]) -> str:
    """The whole page."""
    areas = [Area.of(each) for each in results["areas"]]
    rows = results["rows"]
    parts = [HEADER, *run_of(results), *goals(rows)]
    for area in areas:
        parts += area_section(area, [row for row in rows if row["area"] == area.name])
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def run_of(results: Mapping[str, Any]) -> Iterator[str]:
    machine, versions = results["machine"], results["versions"]
    yield "## This run"
    yield table(
        ["", ""],
        [
            ["Date, commit", f"{results['date']}, `{results['commit'][:12]}`"],
            ["Rounds, scale", f"{results['rounds']}, {results['scale']:g}"],
            *([name.capitalize(), str(value)] for name, value in machine.items()),
            ["Beside", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ],
    )


def goals(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    bound = [row for row in rows if row["goal"]]
    missed = [row for row in bound if not row["met"]]
    yield "## Goals"
    yield f"{len(bound) - len(missed)} of {len(bound)} are met."
    yield table(
        ["area", "what", "ratio", "goal", ""],
        [
            [
                row["area"],
                row["name"],
                ratio(row),
                row["goal"],
                "met" if row["met"] else "**missed**",
            ]
            for row in bound
        ],
    )


def area_section(area: Area, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"## {area.title}"
    yield area.method
    yield f"![{area.title}](../benchmarks/results/{area.name}.svg)"
    compared = [row for row in rows if not row["growth"]]
    yield table(
        ["", "ours", "other", "unit", "ratio", "goal"],
        [
            [
                row["name"],
                side(area, row, "ours"),
                side(area, row, "other"),
                row["unit"],
                ratio(row),
                f"{row['goal']} {'met' if row['met'] else '**missed**'}" if row["goal"] else "",
            ]
            for row in compared
        ],
    )
    for name, samples in area.sides.items():
        if samples.failed:
            yield f"`{name}` failed: {samples.failed}"
    growth = [row for row in rows if row["growth"]]
    if growth:
        yield (
            "How cost grows: with more to do, or with more there already, beside the least. It is"
            " linear where one costs the same."
        )
        yield table(
            ["", "more", "least", "unit", "ratio", ""],
            [
                [
                    row["name"],
                    number(row["ours"]),
                    number(row["other"]),
                    row["unit"],
                    ratio(row),
                    grows(row),
                ]
                for row in growth
            ],
        )
    if area.name in LIMITS:
        yield f"What limits it: {LIMITS[area.name][0].lower() + LIMITS[area.name][1:]}"


def grows(row: Mapping[str, Any]) -> str:
    """Express the ratio as the cost of one. Of whole streams and templates there are rates and
    times; a request is one, however much is in the tables."""
    if row["ratio"] is None:
        return "failed"
    more = float(row["name"].partition(" times")[0].split()[-1])
    each = {"loads/s": row["ratio"] * more, "s": more / row["ratio"]}.get(row["unit"], row["ratio"])
    same = "constant" if row["unit"] == "requests/s" else "linear"
    if each < LINEAR:
        return f"no longer {same}: one costs more"
    return same if each < 1 / LINEAR else "better than linear: fixed costs are shared"


def side(area: Area, row: Mapping[str, Any], which: str) -> str:
    """The median, in brackets its spread, and the processor time of one where it was measured."""
    if row[which] is None:
        return "failed"
    spread = " - ".join(number(value) for value in row["spread"][which])
    cpu = area.sides[row["sides"][0 if which == "ours" else 1]].cpu_us
    return f"{number(row[which])} ({spread})" + (f", {number(median(cpu))} µs" if cpu else "")


def ratio(row: Mapping[str, Any]) -> str:
    return "failed" if row["ratio"] is None else f"{row['ratio']:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
