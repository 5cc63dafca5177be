"""The progress of a batch, and its split into lanes."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from zlib import crc32

from aiokafka import ConsumerRecord, TopicPartition


class Progress:
    """The progress of a fetched batch. Lanes finish out of order; offsets are committed in order."""

    def __init__(self, batch: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        self._offsets = {
            tp: [record.offset for record in records] for tp, records in batch.items() if records
        }
        self._done: dict[TopicPartition, set[int]] = {tp: set() for tp in self._offsets}
        self._committed: dict[TopicPartition, int] = {}

    def done(self, *records: ConsumerRecord) -> None:
        """The effects of `records` are durable, or they are safely in another topic."""
        for (topic, partition), group in groupby(records, key=attrgetter("topic", "partition")):
            self._done[TopicPartition(topic, partition)].update(r.offset for r in group)

    @property
    def complete(self) -> bool:
        return all(len(self._done[tp]) == len(offsets) for tp, offsets in self._offsets.items())

    def committable(self) -> dict[TopicPartition, int]:
        """The offsets to commit now: each one past the last record before which all are done.

        Partitions whose offset has not moved since `committed` are left out.
        """
        positions = {tp: self._position(tp) for tp in self._offsets}
        return {
            tp: offset
            for tp, offset in positions.items()
            if offset is not None and offset != self._committed.get(tp)
        }

    def first_undone(self) -> dict[TopicPartition, int]:
        """The offset from which each unfinished partition has to be read again."""
        return {
            tp: next(offset for offset in offsets if offset not in self._done[tp])
            for tp, offsets in self._offsets.items()
            if len(self._done[tp]) < len(offsets)
        }

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._committed.update(offsets)

    def _position(self, tp: TopicPartition) -> int | None:
        done = self._done[tp]
        position = None
        for offset in self._offsets[tp]:
            if offset not in done:
                break
            position = offset + 1
        return position


def split(records: Sequence[ConsumerRecord], lanes: int) -> list[list[ConsumerRecord]]:
    """Share `records` out to at most `lanes` lists, none of them empty, order kept in each.

    Records with one key share a lane, whichever partition they come from; those without a key have
    no order to keep and are spread.
    """
    if lanes == 1:
        return [list(records)] if records else []
    shared: list[list[ConsumerRecord]] = [[] for _ in range(lanes)]
    for index, record in enumerate(records):
        lane = index if record.key is None else crc32(record.key)
        shared[lane % lanes].append(record)
    return [lane for lane in shared if lane]
