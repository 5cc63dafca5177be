"""Topics: their partitions, their messages, one message, and messages as they arrive."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping

from aiokafka import ConsumerRecord, TopicPartition
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from app.platform.console.pages import NOTHING, Console, console_of, moment, text
from app.platform.http.browser import Fields
from app.platform.kafka import codec
from app.platform.kafka.admin import TopicAdmin, reading
from app.platform.kafka.codec import header
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.excerpts import Place, follow_from, read_at, read_one, read_ranges
from app.platform.kafka.topics import failure_topic
from app.platform.terminal import one_line, printable

SHOWN = 50
# A stream ends sooner than a process that stops would wait for it; the browser then opens the next.
STREAM_SECONDS = 8.0
MOST_STREAMS = 10


async def show_topics(request: Request) -> Response:
    console = console_of(request)
    topics = console.context.all_topics()
    async with TopicAdmin.connected(console.context.kafka) as admin:
        states = await admin.compare(topics)
    lengths: dict[str, list[int]] = defaultdict(list)  # of the partitions
    async with reading(console.context.kafka, [topic.name for topic in topics]) as client:
        for tp, (start, end) in (await read_ranges(client)).items():
            lengths[tp.topic].append(end - start)
    values = {"states": states, "lengths": lengths, "failure_topic": failure_topic}
    return console.render(request, "topics", "Topics", **values)


def _known(request: Request) -> str:
    """Return the topic of the path. Raises HTTPException 404 for one that the service has not."""
    name: str = request.path_params["topic"]
    if name not in {topic.name for topic in console_of(request).context.all_topics()}:
        raise HTTPException(404, f"this service neither owns nor reads a topic {name}")
    return name


async def show_messages(request: Request) -> Response:
    console, topic = console_of(request), _known(request)
    given = Fields.of(request.query_params, "partition", "offset", "time", "key")
    numbers = given.number("partition"), given.number("offset")
    place = Place(*numbers, given.time("time"), given.get("key"))
    async with reading(console.context.kafka, [topic]) as client:
        ranges = await read_ranges(client)
        records, note = await read_at(client, place, SHOWN)
    return console.render(
        request,
        "messages",
        topic,
        given=given,
        ranges=ranges,
        records=reversed(records),
        note=note,
        type_of=lambda record: header(record.headers, codec.CE_TYPE),
    )


async def show_message(request: Request) -> Response:
    console, topic = console_of(request), _known(request)
    partition = TopicPartition(topic, request.path_params["partition"])
    offset: int = request.path_params["offset"]
    place = f"{topic}[{partition.partition}]@{offset}"
    async with reading(console.context.kafka, [topic]) as client:
        if partition not in client.assignment():
            raise HTTPException(404, f"{topic} has no partition {partition.partition}")
        record = await read_one(client, partition, offset)
    if record is None:
        reason = "there is no message: not yet, not any more, or a marker of a transaction"
        raise HTTPException(404, f"{place}: {reason}")
    decoder = EventDecoder(console.context.registry)
    origin = decoder.origin(record)
    return console.render(
        request,
        "message",
        place,
        record=record,
        correlation_id=header(record.headers, codec.CORRELATION_ID),
        event_id=decoder.identify(record, origin) or header(record.headers, codec.CE_ID),
        origin=origin,
        decoded=console.decoded(decoder, record, origin),
        body=console.body(record.value),
    )


# Following


async def show_following(request: Request) -> Response:
    topic = _known(request)
    return console_of(request).render(request, "following", f"{topic}, live", topic=topic)


async def follow(request: Request) -> Response:
    """Send messages as they arrive, as server-sent events, for a few seconds.

    The id of each event is where the next stream goes on, so that none is left out between two.
    """
    name, streams = _known(request), request.app.state.streams
    if len(streams) >= MOST_STREAMS:
        raise HTTPException(503, f"{MOST_STREAMS} pages follow topics already: close one")
    try:
        found = json.loads(request.headers.get("last-event-id") or "{}")
        given = {int(partition): int(offset) for partition, offset in found.items()}
    except (ValueError, TypeError, AttributeError):
        given = {}
    events = _events(console_of(request), name, given, streams)
    return StreamingResponse(events, media_type="text/event-stream")


async def _events(
    console: Console, name: str, given: Mapping[int, int], streams: set[object]
) -> AsyncIterator[str]:
    me = object()
    streams.add(me)
    try:
        async with reading(console.context.kafka, [name]) as client:
            async for reached, records in follow_from(client, given, STREAM_SECONDS):
                kind = "" if records else "event: ready\n"
                rows = json.dumps([_row(record) for record in records])
                yield f"retry: 300\nid: {json.dumps(reached)}\n{kind}data: {rows}\n\n"
    finally:
        streams.discard(me)


def _row(record: ConsumerRecord) -> list[str]:
    place = f"{record.partition}@{record.offset}"
    kind = header(record.headers, codec.CE_TYPE) or NOTHING
    return [moment(record.timestamp), place, one_line(text(record.key)), printable(kind)]


ROUTES = [
    Route("/topics", show_topics),
    Route("/topics/{topic}", show_messages),
    Route("/topics/{topic}/follow", show_following),
    Route("/topics/{topic}/stream", follow),
    Route("/topics/{topic}/{partition:int}/{offset:int}", show_message),
]
