"""Excerpts of topics: one record, the newest records, and those from a place on or with a key."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from operator import itemgetter
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from app.platform.kafka import admin
from app.platform.kafka.errors import BrokerUnavailable

_MIN_CHUNK, _MAX_CHUNK = 16, 500  # offsets
SEARCHED = 5_000  # messages in which a key is looked for
MAX_BYTES = 64_000_000  # of the values that are kept

Ranges = dict[TopicPartition, tuple[int, int]]
"""The first offset of partitions, and the offset after the last one."""


async def read_one(
    client: AIOKafkaConsumer, partition: TopicPartition, offset: int
) -> ConsumerRecord | None:
    """Return the record at `offset` of an assigned partition; None if there is none (any more).

    The client is left paused. Raises BrokerUnavailable.
    """
    client.pause(*client.assignment())
    start = (await client.beginning_offsets([partition]))[partition]
    end = (await client.end_offsets([partition]))[partition]
    if not start <= offset < end:
        return None
    found = [record async for record in _read_range(client, partition, offset, offset + 1)]
    return found[0] if found else None


class Newest(NamedTuple):
    """The newest records of several partitions, oldest first; `has_older` if there are others."""

    records: list[ConsumerRecord]
    has_older: bool


async def read_newest(client: AIOKafkaConsumer, count: int, max_bytes: int) -> Newest:
    """Return the newest records of all assigned partitions together, in the order of their times.

    There are at most `count` of them, with at most `max_bytes` of values. However many records the
    topics have, about twice the returned ones are read: each partition backwards in chunks, first the
    one whose next chunk is the newest. Only records that exist now are read. The client is left
    paused. Raises BrokerUnavailable.
    """
    partitions = sorted(client.assignment())
    newest = _NewestRecords(count, max_bytes)
    if not partitions:
        return Newest([], False)
    client.pause(*partitions)  # so that no fetch waits for the ends of the others
    starts = await client.beginning_offsets(partitions)
    ends = await client.end_offsets(partitions)
    size = max(_MIN_CHUNK, min(_MAX_CHUNK, count // len(partitions) + 1))
    left = [_Backlog(tp, starts[tp], ends[tp], size) for tp in partitions if starts[tp] < ends[tp]]
    while left:
        backlog = max(left, key=lambda each: each.latest)
        if newest.excludes(backlog.latest):
            break
        await _read_chunk(client, backlog, newest)
        if backlog.start >= backlog.end:
            left.remove(backlog)
    return Newest(newest.in_order(), newest.dropped or bool(left))


@dataclass
class _Backlog:
    """The offsets of a partition that are not read yet, from `start` to before `end`."""

    partition: TopicPartition
    start: int
    end: int
    chunk: int
    latest: float = float("inf")  # of the times of the chunk that was read last, in milliseconds


async def _read_chunk(
    client: AIOKafkaConsumer, backlog: _Backlog, newest: "_NewestRecords"
) -> None:
    lower = max(backlog.start, backlog.end - backlog.chunk)
    times = []
    async for record in _read_range(client, backlog.partition, lower, backlog.end):
        newest.add(record)
        times.append(record.timestamp)
    if len(times) < backlog.chunk // 2:  # gaps, as compaction leaves them
        backlog.chunk *= 2
    # The greatest time, because a sender's clock may have been wrong for a single record.
    backlog.latest = max(times, default=backlog.latest)
    backlog.end = lower


class _NewestRecords:
    """The newest of the records that were added, within limits on their number and their values."""

    def __init__(self, count: int, max_bytes: int) -> None:
        self._room, self._room_bytes = count, max_bytes
        self._heap: list[tuple[_Place, ConsumerRecord]] = []
        self._newest_dropped: _Place | None = None

    @property
    def dropped(self) -> bool:
        return self._newest_dropped is not None

    def add(self, record: ConsumerRecord) -> None:
        place = _Place(record.timestamp, record.topic, record.partition, record.offset)
        if self._newest_dropped is not None and place < self._newest_dropped:
            return  # an older one must not take the room that a larger, newer one did not find
        heappush(self._heap, (place, record))
        self._room -= 1
        self._room_bytes -= len(record.value or b"")
        while self._room < 0 or self._room_bytes < 0:
            self._newest_dropped, oldest = heappop(self._heap)
            self._room += 1
            self._room_bytes += len(oldest.value or b"")

    def excludes(self, latest: float) -> bool:
        """Return whether there is no room for records of the time `latest` or earlier."""
        if self._newest_dropped is not None and latest <= self._newest_dropped.time:
            return True
        return self._room <= 0 and (not self._heap or latest <= self._heap[0][0].time)

    def in_order(self) -> list[ConsumerRecord]:
        return [record for _, record in sorted(self._heap, key=itemgetter(0))]


class _Place(NamedTuple):
    """The order of records: by time, and those of a partition that are of one time by offset."""

    time: int
    topic: str
    partition: int
    offset: int


async def _read_range(
    client: AIOKafkaConsumer, partition: TopicPartition, lower: int, upper: int
) -> AsyncIterator[ConsumerRecord]:
    """Yield the records from the offset `lower` to before `upper`, of which some may be missing.

    Raises BrokerUnavailable when none comes for STALL_SECONDS.
    """
    client.resume(partition)
    client.seek(partition, lower)
    position, progressed_at = lower, time.monotonic()
    while position < upper:
        fetched = await client.getmany(
            partition, timeout_ms=int(admin.POLL_SECONDS * 1000), max_records=upper - position
        )
        before, position = position, await client.position(partition)
        if position >= upper:
            # At once, because the next fetch would wait at the end; and records that were fetched beyond
            # `upper` would delay the other partitions.
            client.pause(partition)
            client.seek(partition, upper)
        for record in fetched.get(partition, ()):
            if record.offset < upper:
                yield record
        if position != before:
            progressed_at = time.monotonic()
        elif time.monotonic() - progressed_at > admin.STALL_SECONDS:
            raise BrokerUnavailable(f"Kafka does not return the records of {partition.topic}")


async def read_from(
    client: AIOKafkaConsumer, positions: Mapping[TopicPartition, int], count: int
) -> list[ConsumerRecord]:
    """Return up to `count` records in the order of their times, from `positions` on.

    Of each assigned partition, at most `count` offsets are read. The client is left paused.
    Raises BrokerUnavailable.
    """
    client.pause(*client.assignment())
    starts = await client.beginning_offsets(list(positions))
    ends = await client.end_offsets(list(positions))
    found = []
    for partition, position in sorted(positions.items()):
        lower = max(position, starts[partition])
        upper = min(lower + count, ends[partition])
        if lower < upper:
            found += [record async for record in _read_range(client, partition, lower, upper)]
    found.sort(key=lambda each: (each.timestamp, each.topic, each.partition, each.offset))
    return found[:count]


async def read_ranges(client: AIOKafkaConsumer) -> Ranges:
    """Return the ranges of the assigned partitions."""
    partitions = sorted(client.assignment())
    starts = await client.beginning_offsets(partitions) if partitions else {}
    ends = await client.end_offsets(partitions) if partitions else {}
    return {tp: (starts[tp], ends[tp]) for tp in partitions}


@dataclass(frozen=True)
class Place:
    """The messages to read: the newest ones unless a field says from where on, or with which key."""

    partition: int | None = None
    offset: int | None = None
    time: datetime | None = None
    key: str | None = None


async def read_at(
    client: AIOKafkaConsumer, place: Place, count: int
) -> tuple[list[ConsumerRecord], str]:
    """Return up to `count` records, the oldest first, and a sentence on which ones they are.

    The client is left on the partitions of `place`, paused. Raises BrokerUnavailable.
    """
    assigned = client.assignment()
    chosen = [tp for tp in assigned if place.partition in (None, tp.partition)]
    if not chosen:
        return [], "It has no such partition." if assigned else "The topic is not on the broker."
    client.assign(chosen)
    if place.key is not None:
        newest = await read_newest(client, SEARCHED, MAX_BYTES)
        found = [record for record in newest.records if record.key == place.key.encode()]
        limits = f"the newest {len(newest.records)}" if newest.has_older else "all"
        return found[-count:], f"Found {len(found)} with this key among {limits} messages."
    if place.offset is not None or place.time is not None:
        positions = await _positions(client, place)
        return await read_from(client, positions, count), f"The first {count} from there on."
    newest = await read_newest(client, count, MAX_BYTES)
    return newest.records, f"The newest {count}." if newest.has_older else "All messages."


async def _positions(client: AIOKafkaConsumer, place: Place) -> dict[TopicPartition, int]:
    partitions = sorted(client.assignment())
    if place.offset is not None:
        return dict.fromkeys(partitions, place.offset)
    assert place.time is not None
    moment = max(0, int(place.time.timestamp() * 1000))  # Kafka has no times before 1970
    found = await client.offsets_for_times(dict.fromkeys(partitions, moment))
    return {tp: at.offset for tp, at in found.items() if at is not None}


async def follow_from(
    client: AIOKafkaConsumer, given: Mapping[int, int], seconds: float
) -> AsyncIterator[tuple[dict[int, int], list[ConsumerRecord]]]:
    """Yield records of one topic as they arrive, for `seconds`, with the offsets that follow them.

    They begin at the offsets `given` by partition, and at the ends of other partitions. The first list
    is empty, and so is one whenever none has come for half a second.
    """
    reached = {}
    for tp, (_, end) in (await read_ranges(client)).items():
        reached[tp.partition] = min(given.get(tp.partition, end), end)
        client.seek(tp, max(0, reached[tp.partition]))
    yield reached, []
    ends_at = time.monotonic() + seconds
    while client.assignment() and time.monotonic() < ends_at:
        fetched = await client.getmany(
            timeout_ms=int(admin.POLL_SECONDS * 1000), max_records=_MAX_CHUNK
        )
        records = [record for part in fetched.values() for record in part]
        reached |= {record.partition: record.offset + 1 for record in records}
        yield reached, records
