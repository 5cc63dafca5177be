"""The story of one request: its steps, as the log, the topics and the outbox have them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from aiokafka import ConsumerRecord
from sqlalchemy import text as sql

from app.platform.database.engine import Database
from app.platform.kafka import codec
from app.platform.kafka.admin import read_to_end, reading
from app.platform.kafka.codec import header
from app.platform.kafka.excerpts import MAX_BYTES, read_newest
from app.platform.kafka.topics import failure_topic
from app.platform.runtime import Context

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
    """Something that happened on behalf of a request. Fields that its source lacks are None.

    `source` is "log", "topic" or "outbox"; `text` is the step as `app trace` prints it.
    """

    time: datetime
    source: str
    text: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    event_type: str | None = None
    event_id: str | None = None
    causation_id: str | None = None
    consumer: str | None = None
    error: str | None = None

    @property
    def failure(self) -> str | None:
        """The failure that a dead letter or a parked event is; None for other steps."""
        if self._kind == "dlq":
            return f"failed in {self.consumer}: {self.error}"
        return self.error if self.source == "outbox" else None

    @property
    def attempt(self) -> str | None:
        """The later attempt that a message in a replay or delay topic is; None for other steps."""
        if self._kind == "replay":
            return f"replayed to {self.consumer}"
        if self._kind == "retry":
            return f"a later attempt of {self.consumer}, after: {self.error}"
        return None

    @property
    def _kind(self) -> str | None:
        found = failure_topic(self.topic or "") if self.consumer else None
        return None if found is None else found.kind


async def recorded(context: Context, database: Database, correlation_id: str) -> list[Step]:
    """Find the steps in the topics, which are read from their beginnings, and in the outbox.

    Raises BrokerUnavailable.
    """
    async with reading(context.kafka, _topics(context)) as client:
        sent = [record async for record in read_to_end(client) if _is_of(record, correlation_id)]
    return [*map(step_of, sent), *await unsent(database, correlation_id)]


async def newest(
    context: Context, database: Database, correlation_id: str, count: int
) -> tuple[list[Step], bool]:
    """Find the steps in the `count` newest messages, and in the outbox; and say if there are older ones.

    Raises BrokerUnavailable.
    """
    async with reading(context.kafka, _topics(context)) as client:
        records, has_older = await read_newest(client, count, MAX_BYTES)
    sent = [step_of(record) for record in records if _is_of(record, correlation_id)]
    return sent + await unsent(database, correlation_id), has_older


def logged(log: Path, correlation_id: str) -> Iterator[Step]:
    """Find the steps in the file `log`, of lines in JSON, and in the older one beside it.

    There are none if `log` does not exist.
    """
    if not log.exists():
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


def _topics(context: Context) -> list[str]:
    return sorted({topic.name for topic in context.all_topics()})


def _is_of(record: ConsumerRecord, correlation_id: str) -> bool:
    return header(record.headers, codec.CORRELATION_ID) == correlation_id


def step_of(record: ConsumerRecord) -> Step:
    """Return the step that a message is, with the history of a failed one."""

    def named(name: str) -> str | None:
        return header(record.headers, name)

    fields = {
        "event": named(codec.CE_TYPE),
        "id": named(codec.CE_ID),
        "caused by": named(codec.CAUSATION_ID),
        "failed in": named(codec.CONSUMER),
        "error": named(codec.ERROR_MESSAGE),
    }
    place = f"{record.topic}[{record.partition}]@{record.offset}"
    text = "  ".join([place, *(f"{label}={value}" for label, value in fields.items() if value)])
    where = (record.topic, record.partition, record.offset)
    return Step(_sent_at(record), "topic", text, *where, *fields.values())


def _sent_at(record: ConsumerRecord) -> datetime:
    """Return the time of the record, as far as a date can express the sender's clock."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=record.timestamp)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


# The tables of the module outbox, which this module does not import.
_UNSENT = """
SELECT created_at, topic, ce_type, ce_id, NULL FROM outbox WHERE correlation_id = :id
UNION ALL
SELECT parked_at, topic, ce_type, ce_id, reason FROM outbox_parked WHERE correlation_id = :id
"""


async def unsent(database: Database, correlation_id: str) -> list[Step]:
    """The rows of the outbox that are not sent yet, and those that cannot be."""
    async with database.sessions() as session:
        if not await session.scalar(sql("SELECT to_regclass('outbox_parked') IS NOT NULL")):
            return []
        rows = await session.execute(sql(_UNSENT), {"id": correlation_id})
        return [_unsent_step(*row) for row in rows]


def _unsent_step(time: datetime, topic: str, event: str, id: str, reason: str | None) -> Step:
    state = "not sent yet" if reason is None else f"parked: {reason}"
    text = f"to {topic}  event={event}  id={id}  {state}"
    return Step(time, "outbox", text, topic, event_type=event, event_id=str(id), error=reason)
