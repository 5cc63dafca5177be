"""Topics: their partitions, their messages, one message, and messages as they arrive."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from app.platform.console.pages import Console, console_of, number_in, time_in
from app.platform.kafka import codec
from app.platform.kafka.admin import POLL_SECONDS, State, TopicAdmin, reading
from app.platform.kafka.codec import header
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.excerpts import read_from, read_newest, read_one
from app.platform.kafka.topics import failure_topic
from app.platform.terminal import one_line, printable

SHOWN = 50
SEARCHED = 5_000  # messages in which a key is looked for
MAX_BYTES = 64_000_000
# A stream ends sooner than a process that stops would wait for it; the browser then opens the next.
STREAM_SECONDS = 8.0
MOST_STREAMS = 10


async def show_topics(request: Request) -> Response:
    console = console_of(request)
    topics = [*console.context.topics(), *console.context.foreign_topics()]
    async with TopicAdmin.connected(console.context.kafka) as admin:
        states = await admin.compare(topics)
    async with reading(console.context.kafka, [topic.name for topic in topics]) as client:
        ranges = await _ranges(client)
    rows = [
        {
            "name": state.topic.name,
            "kind": _kind(state.topic.name, state.topic.owner),
            "state": "ok" if state.state is State.PRESENT else str(state.state),
            "is_wrong": state.is_wrong,
            "detail": state.detail,
            "partitions": sum(tp.topic == state.topic.name for tp in ranges),
            "messages": sum(
                end - start for tp, (start, end) in ranges.items() if tp.topic == state.topic.name
            ),
        }
        for state in states
    ]
    return console.render(request, "topics.html.j2", rows=rows)


async def _ranges(client: AIOKafkaConsumer) -> dict[TopicPartition, tuple[int, int]]:
    partitions = sorted(client.assignment())
    starts = await client.beginning_offsets(partitions) if partitions else {}
    ends = await client.end_offsets(partitions) if partitions else {}
    return {tp: (starts[tp], ends[tp]) for tp in partitions}


def _kind(name: str, owner: str | None) -> str:
    if owner is not None:
        return f"of {owner}"
    failures = failure_topic(name)
    return "own" if failures is None else f"{failures.kind} of {failures.consumer}"


def _known(request: Request) -> str:
    """Return the topic of the path. Raises HTTPException 404 for one that the service has not."""
    name: str = request.path_params["topic"]
    context = console_of(request).context
    if name not in {topic.name for topic in [*context.topics(), *context.foreign_topics()]}:
        raise HTTPException(404, f"this service neither owns nor reads a topic {name}")
    return name


# Messages


@dataclass(frozen=True)
class Query:
    """The messages that a page shows: the newest ones unless a field says from where on."""

    partition: int | None
    offset: int | None
    time: datetime | None
    key: str | None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """Read the query of a URL. Raises HTTPException 400."""
        return cls(
            number_in(given, "partition"),
            number_in(given, "offset"),
            time_in(given, "time"),
            given.get("key") or None,
        )


async def show_messages(request: Request) -> Response:
    console, name, query = console_of(request), _known(request), Query.of(request.query_params)
    async with reading(console.context.kafka, [name]) as client:
        chosen = [tp for tp in client.assignment() if query.partition in (None, tp.partition)]
        ranges = await _ranges(client)
        records: Sequence[ConsumerRecord] = []
        note = "It has no such partition."
        if chosen:
            client.assign(chosen)
            records, note = await _find(client, query)
    return console.render(
        request,
        "messages.html.j2",
        topic=name,
        query=query,
        given=request.query_params,
        ranges=ranges,
        records=[_summary(record) for record in reversed(records)],
        note=note,
    )


async def _find(client: AIOKafkaConsumer, query: Query) -> tuple[Sequence[ConsumerRecord], str]:
    """Return messages, the oldest first, and a sentence on which ones they are."""
    if query.key is not None:
        newest = await read_newest(client, SEARCHED, MAX_BYTES)
        wanted = query.key.encode()
        found = [record for record in newest.records if record.key == wanted]
        limits = f"the newest {len(newest.records)}" if newest.has_older else "all"
        return found[-SHOWN:], f"Found {len(found)} with this key among {limits} messages."
    if query.offset is not None or query.time is not None:
        positions = await _positions(client, query)
        return await read_from(client, positions, SHOWN), f"The first {SHOWN} from there on."
    newest = await read_newest(client, SHOWN, MAX_BYTES)
    return newest.records, f"The newest {SHOWN}." if newest.has_older else "All messages."


async def _positions(client: AIOKafkaConsumer, query: Query) -> dict[TopicPartition, int]:
    partitions = sorted(client.assignment())
    if query.offset is not None:
        return dict.fromkeys(partitions, query.offset)
    assert query.time is not None
    moment = max(0, int(query.time.timestamp() * 1000))  # Kafka has no times before 1970
    found = await client.offsets_for_times(dict.fromkeys(partitions, moment))
    return {tp: at.offset for tp, at in found.items() if at is not None}


def _summary(record: ConsumerRecord) -> dict[str, Any]:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "time": record.timestamp,
        "key": record.key,
        "type": header(record.headers, codec.CE_TYPE),
        "size": len(record.value or b""),
    }


async def show_message(request: Request) -> Response:
    console, name = console_of(request), _known(request)
    partition = TopicPartition(name, request.path_params["partition"])
    offset: int = request.path_params["offset"]
    async with reading(console.context.kafka, [name]) as client:
        if partition not in client.assignment():
            raise HTTPException(404, f"{name} has no partition {partition.partition}")
        record = await read_one(client, partition, offset)
    if record is None:
        reason = "there is no message: not yet, not any more, or a marker of a transaction"
        raise HTTPException(404, f"{name}[{partition.partition}]@{offset}: {reason}")
    decoder, origin = EventDecoder(console.context.registry), _origin(console, record)
    return console.render(
        request,
        "message.html.j2",
        record=record,
        headers=record.headers,
        correlation_id=header(record.headers, codec.CORRELATION_ID),
        event_id=decoder.identify(record, origin) or header(record.headers, codec.CE_ID),
        origin=origin,
        decoded=console.decoded(decoder, record, origin),
        body=console.body(record.value),
    )


def _origin(console: Console, record: ConsumerRecord) -> str:
    """Return the topic that a message first came from."""
    failures = failure_topic(record.topic)
    if failures is None or console.context.registry.events_on(record.topic) is not None:
        return str(record.topic)
    return header(record.headers, codec.ORIGIN_TOPIC) or failures.origin


# Following


async def show_following(request: Request) -> Response:
    return console_of(request).render(request, "following.html.j2", topic=_known(request))


async def follow(request: Request) -> Response:
    """Send messages as they arrive, as server-sent events, for a few seconds.

    The id of each is where the next stream goes on, so that none is left out between two.
    """
    name, streams = _known(request), request.app.state.streams
    if len(streams) >= MOST_STREAMS:
        raise HTTPException(503, f"{MOST_STREAMS} pages follow topics already: close one")
    positions = request.headers.get("last-event-id", "")
    events = _events(console_of(request), name, positions, streams)
    return StreamingResponse(events, media_type="text/event-stream")


async def _events(
    console: Console, name: str, positions: str, streams: set[object]
) -> AsyncIterator[str]:
    me = object()
    streams.add(me)
    try:
        async with reading(console.context.kafka, [name]) as client:
            reached = await _seek(client, positions)
            # Not before the ends are known: whoever reads "following" misses nothing from then on.
            yield f"retry: 300\nid: {json.dumps(reached)}\nevent: ready\ndata: 1\n\n"
            loop = asyncio.get_running_loop()
            ends_at = loop.time() + STREAM_SECONDS
            while client.assignment() and loop.time() < ends_at:
                fetched = await client.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=100)
                for record in (record for records in fetched.values() for record in records):
                    reached[str(record.partition)] = record.offset + 1
                    yield f"id: {json.dumps(reached)}\ndata: {json.dumps(_line(record))}\n\n"
                yield ": still here\n\n"
    finally:
        streams.discard(me)


async def _seek(client: AIOKafkaConsumer, positions: str) -> dict[str, int]:
    """Go on at `positions`, or at the end of a partition that it does not name."""
    try:
        found = json.loads(positions or "{}")
        given = {str(int(partition)): int(offset) for partition, offset in found.items()}
    except (ValueError, TypeError, AttributeError):
        given = {}
    partitions = sorted(client.assignment())
    ends = await client.end_offsets(partitions) if partitions else {}
    reached = {}
    for tp in partitions:
        offset = min(given.get(str(tp.partition), ends[tp]), ends[tp])
        client.seek(tp, max(0, offset))
        reached[str(tp.partition)] = offset
    return reached


def _line(record: ConsumerRecord) -> list[str]:
    time = datetime.fromtimestamp(max(0, record.timestamp) / 1000, UTC).isoformat(
        " ", "milliseconds"
    )
    key = "-" if record.key is None else record.key.decode("utf-8", "backslashreplace")
    kind = header(record.headers, codec.CE_TYPE) or "-"
    place = f"{record.partition}@{record.offset}"
    return [time.removesuffix("+00:00"), place, one_line(key), printable(kind)]


ROUTES = [
    Route("/topics", show_topics),
    Route("/topics/{topic}", show_messages),
    Route("/topics/{topic}/follow", show_following),
    Route("/topics/{topic}/stream", follow),
    Route("/topics/{topic}/{partition:int}/{offset:int}", show_message),
]
