"""Offset bookkeeping: up to where may a batch be committed?"""

from collections.abc import Mapping, Sequence

from aiokafka import ConsumerRecord, TopicPartition


class Progress:
    """What is done of a fetched batch. Lanes finish out of order; offsets are committed in order."""

    def __init__(self, batch: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        self._offsets = {
            tp: [record.offset for record in records] for tp, records in batch.items() if records
        }
        self._done: dict[TopicPartition, set[int]] = {tp: set() for tp in self._offsets}
        self._committed: dict[TopicPartition, int] = {}

    def done(self, record: ConsumerRecord) -> None:
        """The record's effects are durable, or it is safely in another topic."""
        self._done[TopicPartition(record.topic, record.partition)].add(record.offset)

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
