"""The story of one request: `app trace`."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from app.platform.cli.base import context_of, failure, on_database
from app.platform.terminal import printable, say

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from app.platform.database.engine import Database
    from app.platform.runtime import Context

commands = typer.Typer()

LOG = Path(".dev/app.log")
_STANDARD_FIELDS = {
    "timestamp",
    "message",
    "level",
    "logger",
    "correlation_id",
    "trace_id",
    "span_id",
    "exception",
}


class Step(NamedTuple):
    """Something that happened on behalf of a request."""

    time: datetime
    source: str
    text: str


@commands.command()
def trace(
    ctx: typer.Context,
    correlation_id: Annotated[
        str, typer.Argument(help="As the response's X-Correlation-Id and the log lines have it.")
    ],
    log: Annotated[Path, typer.Option(help="A log in JSON; `app dev` writes the default.")] = LOG,
) -> None:
    """Print what one request led to, in order of time.

    The sources are log lines, rows of the outbox, and the messages of the service's topics, dead
    letters included. The topics are read from their beginnings.
    """
    context = context_of(ctx)
    steps = [*_logged(log, correlation_id), *asyncio.run(_recorded(context, correlation_id))]
    if not steps:
        raise failure(f"nothing is known of the correlation id {correlation_id}")
    for step in sorted(steps):
        time = step.time.astimezone(UTC).isoformat(timespec="milliseconds")
        say(printable(f"{time}  {step.source:<6}  {step.text}"))


async def _recorded(context: "Context", correlation_id: str) -> list[Step]:
    steps = [step async for step in _sent(context, correlation_id)]
    return steps + await on_database(lambda database: _unsent(database, correlation_id))


def _logged(log: Path, correlation_id: str) -> Iterator[Step]:
    if not log.exists():
        say(f"{log} does not exist: without log lines", err=True)
        return
    older = log.with_name(f"{log.name}.1")  # as the log is rotated
    for line in chain.from_iterable(map(_lines, filter(Path.exists, [older, log]))):
        if correlation_id not in line:
            continue
        try:
            entry = json.loads(line)
            time = datetime.fromisoformat(entry["timestamp"])
        except (ValueError, TypeError, KeyError):  # cut by a kill, or another program's line
            continue
        if entry.get("correlation_id") == correlation_id:
            utc = time if time.tzinfo else time.replace(tzinfo=UTC)
            yield Step(utc, "log", _log_text(entry))


def _lines(log: Path) -> Iterator[str]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        yield from lines


def _log_text(entry: dict[str, object]) -> str:
    fields = {name: value for name, value in entry.items() if name not in _STANDARD_FIELDS}
    level = entry.get("level")
    message = str(entry.get("message"))
    prefix = "" if level == "info" else f"{level}: "
    return " ".join([prefix + message, *(f"{name}={value}" for name, value in fields.items())])


async def _sent(context: "Context", correlation_id: str) -> AsyncIterator[Step]:
    from app.platform.kafka.admin import read_to_end, reading
    from app.platform.kafka.codec import CORRELATION_ID, header

    topics = {topic.name for topic in context.topics()}
    topics |= {topic.name for topic in context.registry.topics}
    async with reading(context.kafka, sorted(topics)) as client:
        async for record in read_to_end(client):
            if header(record.headers, CORRELATION_ID) == correlation_id:
                yield Step(_sent_at(record), "topic", _record_text(record))


def _sent_at(record: "ConsumerRecord") -> datetime:
    """Return the time of the record, as far as a date can express the sender's clock."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=record.timestamp)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _record_text(record: "ConsumerRecord") -> str:
    from app.platform.kafka import codec

    def named(name: str) -> str | None:
        return codec.header(record.headers, name)

    text = f"{record.topic}[{record.partition}]@{record.offset}"
    for label, name in [
        ("event", codec.CE_TYPE),
        ("id", codec.CE_ID),
        ("caused by", codec.CAUSATION_ID),
        ("failed in", codec.CONSUMER),
        ("error", codec.ERROR_MESSAGE),
    ]:
        if value := named(name):
            text += f"  {label}={value}"
    return text


# The tables of the module outbox, which this command does not import.
_UNSENT = """
SELECT created_at, topic, ce_type, ce_id, 'not sent yet' FROM outbox WHERE correlation_id = :id
UNION ALL
SELECT parked_at, topic, ce_type, ce_id, 'parked: ' || reason FROM outbox_parked
WHERE correlation_id = :id
"""


async def _unsent(database: "Database", correlation_id: str) -> list[Step]:
    """The rows of the outbox that are not sent yet, and those that cannot be."""
    from sqlalchemy import text

    async with database.sessions() as session:
        if not await session.scalar(text("SELECT to_regclass('outbox_parked') IS NOT NULL")):
            return []
        rows = await session.execute(text(_UNSENT), {"id": correlation_id})
        return [
            Step(time, "outbox", f"to {topic}  event={event}  id={id}  {state}")
            for time, topic, event, id, state in rows
        ]
