"""The offsets of a batch: tracking what is done, committing it, and splitting records into lanes."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from zlib import crc32

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors

from app.platform.backoff import Backoff
from app.platform.kafka.lag import AssignmentLag
from app.platform.kafka.positions import Positions
from app.platform.kafka.status import ConsumerStatus, Draining

log = structlog.get_logger(__name__)

COMMIT_TIMEOUT_SECONDS = 5.0
COMMIT_RETRY_SECONDS = (0.1, 5.0)


class OffsetTracker:
    """The finished offsets of a batch. Lanes finish out of order; offsets are committed in order."""

    def __init__(self, batch: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        self._offsets = {
            tp: [record.offset for record in records] for tp, records in batch.items() if records
        }
        self._done: dict[TopicPartition, set[int]] = {tp: set() for tp in self._offsets}
        self._committed: dict[TopicPartition, int] = {}

    def mark_done(self, *records: ConsumerRecord) -> None:
        """Record that the effects of `records` are durable, or that another topic has the messages."""
        for (topic, partition), group in groupby(records, key=attrgetter("topic", "partition")):
            self._done[TopicPartition(topic, partition)].update(r.offset for r in group)

    @property
    def complete(self) -> bool:
        return all(len(self._done[tp]) == len(offsets) for tp, offsets in self._offsets.items())

    def committable(self) -> dict[TopicPartition, int]:
        """Return the offsets to commit: in each partition, the one after the leading finished records.

        Partitions whose offset has not moved since `mark_committed` are omitted.
        """
        positions = {tp: self._position(tp) for tp in self._offsets}
        return {
            tp: offset
            for tp, offset in positions.items()
            if offset is not None and offset != self._committed.get(tp)
        }

    def first_undone(self) -> dict[TopicPartition, int]:
        """Return the offset from which each unfinished partition has to be read again."""
        return {
            tp: next(offset for offset in offsets if offset not in self._done[tp])
            for tp, offsets in self._offsets.items()
            if len(self._done[tp]) < len(offsets)
        }

    def mark_committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._committed.update(offsets)

    def _position(self, tp: TopicPartition) -> int | None:
        done = self._done[tp]
        position = None
        for offset in self._offsets[tp]:
            if offset not in done:
                break
            position = offset + 1
        return position


class OffsetCommitter:
    """Commits the offsets of one consumer."""

    def __init__(self, status: ConsumerStatus, positions: Positions, lag: AssignmentLag) -> None:
        self._status = status
        self._positions = positions
        self._lag = lag

    async def commit_all(self, client: AIOKafkaConsumer, tracker: OffsetTracker) -> None:
        """Commit what is done; while the broker refuses it, wait until the consumer drains."""
        backoff = Backoff(*COMMIT_RETRY_SECONDS)
        while (refusal := await self.try_commit(client, tracker)) is not None:
            if self._status.draining.is_set():
                log.warning("offsets not committed before the end", consumer=self._status.consumer)
                return
            self._status.block(f"the broker refuses offset commits: {type(refusal).__name__}")
            with suppress(Draining):  # one last attempt follows
                await self._status.wait(backoff.next())
        if self._status.block_reason is not None:
            self._status.unblock()

    async def try_commit(
        self, client: AIOKafkaConsumer, tracker: OffsetTracker
    ) -> TimeoutError | kafka_errors.KafkaError | None:
        """Commit what is done, and return the broker's refusal, if any."""
        offsets = tracker.committable()
        if not offsets:
            return None
        try:
            if await self.commit(client, offsets):
                tracker.mark_committed(offsets)
        except (TimeoutError, kafka_errors.KafkaError) as error:
            return error
        return None

    async def commit(self, client: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> bool:
        """Commit `offsets`; return False if another member has the partitions.

        Raises TimeoutError or KafkaError if the broker refuses them.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                await client.commit(offsets)
        except (kafka_errors.CommitFailedError, kafka_errors.IllegalStateError) as error:
            # The inbox recognises what the other member handles again.
            log.info("offsets not committed", consumer=self._status.consumer, reason=str(error))
            return False
        self._positions.committed(offsets)
        self._lag.handled(offsets)
        return True


def split_into_lanes(records: Sequence[ConsumerRecord], lanes: int) -> list[list[ConsumerRecord]]:
    """Distribute `records` over at most `lanes` non-empty lists, keeping the order within each.

    Records of one key share a lane, whichever partition they come from. Records without a key have no
    order to keep, and are spread evenly.
    """
    if lanes == 1:
        return [list(records)] if records else []
    split: list[list[ConsumerRecord]] = [[] for _ in range(lanes)]
    for index, record in enumerate(records):
        lane = index if record.key is None else crc32(record.key)
        split[lane % lanes].append(record)
    return [lane for lane in split if lane]
