"""docs/benchmarks.md, from what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.results import Area, number

HEADER = """\
# Benchmarks

Made by `nox -s bench` from [latest.json](../benchmarks/results/latest.json); edit `benchmarks/report.py`, not this
page.

Every area compares sides that do the same work. They run in one process set-up, on one real Apache Kafka and one
real PostgreSQL with fsync on. Each round measures every side once, in alternating order. Figures are medians of the
rounds, with the minimum and the maximum in brackets. Read the ratios rather than the figures: servers, sides and load
share the cores of one machine. Another machine has other figures, but much the same ratios.

Figures in microseconds are the processor time that one message, row, event or start costs the side's own processes.
They vary less than the rates when the machine has other work.

A ratio is ours divided by the other's, of rates and of times alike. A side that fails says so instead of a figure.
Topics have three partitions and one replica, unless an area says otherwise, and Kafka leaves flushing to the operating
system, as by default.

```
nox -s bench                                    # everything; half an hour with --rounds 5 --scale 0.35
nox -s bench -- --area consume --rounds 5 --scale 0.5
nox -s bench -- --area soak --rounds 1          # an hour at 500 events/s, to see what grows: a section of its own
nox -s bench -- --quick                         # a check that everything works: the figures mean nothing
```
"""

# The limit of each area, from profiles; the figures are in the tables.
LIMITS = {
    "produce": """\
The service adds to plain aiokafka a deadline, a check of each message's size, a typed outcome for each message and
metrics. A single `send` has a short path with one timer for the deadlines of all senders, and costs about 3 us more
than aiokafka's `send_and_wait`. Bulk sends are faster than aiokafka's: from 100 messages on they make their own batches,
of up to 256 kB a partition with one acknowledgement each, where aiokafka makes a future for every message. librdkafka
does the same work in C, and in a second thread.""",
    "consume": """\
One transaction per message is limited by the commit's fsync, so ratios to it depend on the disk. Group commit is
limited by the handler's statement: more than half of the processor time of a message (*cluster*) is spent on it in
SQLAlchemy and asyncpg, which sends one statement at a time, so each waits for its own round trip. A batch handler is limited by the processor time of this
process: decoding and validating with pydantic, and the inbox row. Lanes overlap waiting. Where handlers wait only for a
database on the same two cores, there is little to overlap; where they wait for something else, the gain is nearly the
number of lanes. Worker processes behave alike: handlers that wait gain nearly the number of processes, and others gain
what PostgreSQL and Kafka leave of the cores, which on two cores is little.""",
    "outbox": """\
One relay process is limited by its own processor time: to read a row, make a message of it, settle its
outcome and delete it. Sending costs it less than plain aiokafka's, message by message. Several relays gain little here:
one of them, PostgreSQL and Kafka keep both cores busy. A commit, also one of another process, names its buckets to a
relay, which sends them at once in three round trips to PostgreSQL and one to Kafka. Then a task rests for as long as its
batch took, 50 ms at most, so that more commits share a batch: an event that comes meanwhile waits for another task or for
the end of the rest. Memory does not grow with the backlog.""",
    "orders": """\
A request costs its SQL statements and the web framework. The outbox adds one insert in the same transaction and the
encoding of the event; without it, the request waits for the broker's acknowledgement after the commit. Beside the floor,
it has the service's own code: about a fifth of a POST's processor time in a profile, in many small parts. The largest,
the middleware that traces, logs and measures, takes 3 %; FastAPI resolves five dependencies, and the domain makes and
checks its objects. The load generator takes a part of the two cores. *outbox* and *cqrs* run the same code for this
request, so the difference between their ratios shows the uncertainty. Larger tables make no request more expensive: an
insert and a page of orders use an index.""",
    "event_store": """\
A command is limited by the commit's fsync and three round trips, a load by decoding events from JSON. A snapshot makes
a load independent of the length of the stream.""",
    "projection": """\
The projector adds to the floor the inbox, the validation of events, and a state and a row for each, written as nine
arrays instead of four; the server is as busy with the inbox as the client is with the states. A rebuild computes each
row in Python, because a projection may compute anything; it cannot be as fast as SQL alone. Its upsert, which leaves
newer rows in place, costs more than its floor's COPY, mostly in the encoding of arrays.""",
    "tracing": """\
Off, a message costs the look-up of a switch. On, one that is not sampled costs its context, which is read, passed on and
written, and no span. A sampled one costs several spans and its share of an export, in a thread of the same process. A
batch handler shows it most: it spends 9 us on a message, and OpenTelemetry's SDK 130 us on a sampled one, which is
1.3 us for each of a hundred.""",
    "commands": """\
Nearly all of it is imports: Typer, Rich and pydantic for a help text, and the libraries of the whole service for a
command that reads its events and consumers: SQLAlchemy, aiokafka and pydantic, with the tables and events of the slices.""",
    "start": """\
Processor time, nearly all of it for imports. What the service needs beyond the bare process are first of all its own
modules, with their tables, models and routes (seven tenths of the difference), then structlog, Typer, the client of
Prometheus and pydantic-settings. Alembic is only imported if the database has other revisions than the newest, and Rich
only to print help. The same code is most of its memory. Load adds connections, their prepared statements and the statements that SQLAlchemy has built.""",
    "effect": """\
Each step wakes one more process, and is done by Python there: the request with its two inserts and its commit, then with
the outbox the relay, with three round trips to PostgreSQL and one to Kafka, and then the consumer, with its inbox row,
the handler's statement and its commit. Neither waits for an interval: a commit notifies the relay, and the consumer's
fetch is answered when there is a message.""",
    "cluster": """\
The cores, which four brokers, PostgreSQL and the consumers share. A message handled costs the process of the consumers
170 to 190 us of processor time whatever the partitions and subscriptions, more than half of it in the handler's own
statement, and PostgreSQL about 80 us. The brokers of the largest side used twice the processor time of the consumers
(10.7 s for 20,000 messages handled, with the creation of the topics).
Short rounds also contain the start of the consumers: the join of each group, and the look-up of its offsets.""",
    "soak": """\
Nothing does at this rate: the processes are idle for a part of the time, and what grows would be a fault. A table and
its indexes keep the pages that deleted rows had, until autovacuum, once a minute, makes them free for new ones. So both
tables grow for the first minutes.""",
    "generation": """\
Copier's own start and its git clone of the template are a third of it. The rest is linear in the number of files, and
nearly all of that is Copier's own cost of a file, even of one line (*the same paths*, *a file more*): a `git config`
for each file, and two compilations for each part of its path. An update renders three times, and compares with git.
fastapi-template starts faster than Copier, and clones nothing.""",
}

LINEAR = 0.7

LINES = """\
The service's lines with the most processor time of one, with all that libraries do for them, and the libraries without
a line of the service. Sampling takes a few percent itself."""


def render_report(results: Mapping[str, Any]) -> str:
    """Return the text of docs/benchmarks.md."""
    parts = [HEADER, *run_of(results), *goals(results["rows"]), *sections(results)]
    if apart := results.get("apart"):
        parts += sections(apart, f"A run of its own: {apart['date']}, `{apart['commit'][:12]}`.")
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def sections(results: Mapping[str, Any], note: str = "") -> Iterator[str]:
    for area in [Area.of(each) for each in results["areas"]]:
        yield from area_section(
            area, [row for row in results["rows"] if row["area"] == area.name], note
        )


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
            *([["Last release", f"`{before[:12]}`"]] if (before := results.get("before")) else []),
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


def area_section(area: Area, rows: Sequence[Mapping[str, Any]], note: str) -> Iterator[str]:
    yield f"## {area.title}"
    if note:
        yield note
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
            "How cost grows with more work, or with more data, compared with the least. It is linear"
            " where one costs the same."
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
    if area.lines:
        yield LINES
        yield table(
            ["line", "µs", "of all"],
            [[f"`{place}`", number(micros), f"{share:.1%}"] for place, micros, share in area.lines],
        )
    if area.name in LIMITS:
        yield f"What limits it: {LIMITS[area.name][0].lower() + LIMITS[area.name][1:]}"


def grows(row: Mapping[str, Any]) -> str:
    """Express the ratio as the cost of one.

    Whole streams and templates have rates and times; a request is one, whatever is in the tables.
    """
    if row["ratio"] is None:
        return "failed"
    more = float(row["name"].partition(" times")[0].split()[-1])
    each = {"loads/s": row["ratio"] * more, "s": more / row["ratio"]}.get(row["unit"], row["ratio"])
    same = "constant" if row["unit"] == "requests/s" else "linear"
    if each < LINEAR:
        return f"no longer {same}: one costs more"
    return same if each < 1 / LINEAR else "better than linear: fixed costs are shared"


def side(area: Area, row: Mapping[str, Any], which: str) -> str:
    """Return the median, its spread in brackets, and the processor time if it was measured."""
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
