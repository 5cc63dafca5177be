"""The positions of a consumer: where it starts to read a partition, and what it skips."""

import asyncio
from collections.abc import Collection, Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.platform.kafka import metrics
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import reads_from_earliest

log = structlog.get_logger(__name__)

FIRST_GENERATION = 1


class Positions:
    """The positions of one consumer in the partitions that it is assigned."""

    def __init__(
        self, consumer: str, source_topics: Mapping[str, str], settings: KafkaSettings
    ) -> None:
        self._consumer = consumer
        self._source_topics = source_topics
        self._settings = settings
        self._committed: dict[TopicPartition, int] = {}
        self._started: set[TopicPartition] = set()
        self._group_is_new: bool | None = None

    def revoked(self) -> None:
        self._committed.clear()
        self._started.clear()
        self._group_is_new = None

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._committed.update(offsets)

    async def start(
        self, client: AIOKafkaConsumer, lost: Mapping[TopicPartition, int | None]
    ) -> dict[TopicPartition, int]:
        """Seek to the start positions of the partitions in `lost` and return them.

        The values of `lost` are committed positions out of range. `KAFKA_AUTO_OFFSET_RESET=latest` is
        for new groups only. For any other group, a partition without a committed offset was added or
        created again, and nobody has read its messages.
        """
        # Determined at the first partitions, before this member's own commits could count.
        from_end = self._settings.kafka_auto_offset_reset == "latest" and await self._is_new(client)
        oldest = [
            tp
            for tp, position in lost.items()
            if not from_end
            or position is not None
            or reads_from_earliest(tp.topic, self._source_topics[tp.topic], self._settings)
        ]
        newest = [tp for tp in lost if tp not in oldest]
        # In one request: behind a fetch, the broker answers each only when it has answered that.
        seeks = ((client.seek_to_end, newest), (client.seek_to_beginning, oldest))
        await asyncio.gather(*(seek(*partitions) for seek, partitions in seeks if partitions))
        starts = {tp: int(await client.position(tp)) for tp in lost}
        self._started.update(starts)
        for tp, position in lost.items():
            if position is not None:
                self._report_lost(tp, position, starts[tp])
        return starts

    def _report_lost(self, tp: TopicPartition, lost: int, start: int) -> None:
        # Retention has deleted messages, or the topic was created again and is shorter.
        expired = max(0, start - lost)
        metrics.messages_expired.labels(self._consumer, tp.topic).inc(expired)
        log.warning(
            "position lost, reading from the oldest message",
            consumer=self._consumer,
            topic=tp.topic,
            partition=tp.partition,
            position=lost,
            oldest=start,
            expired=expired,
        )

    async def skipped(
        self, client: AIOKafkaConsumer, unhandled: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return the uncommitted positions of all partitions that are not in `unhandled`.

        The client skips control records and aborted transactions silently. Without a commit they would
        count as lag for ever, and a group that has read no message would be new at each start.
        """
        found = {}
        for tp in client.assignment().difference(unhandled):
            if tp not in self._started and client.last_poll_timestamp(tp) is None:
                continue  # it has no position yet
            position = await client.position(tp)
            if position != self._committed.get(tp):
                found[tp] = position
        return found

    async def _is_new(self, client: AIOKafkaConsumer) -> bool:
        if self._group_is_new is None:
            # Members that start together are all new, though one of them may commit first. aiokafka
            # has no public name for the generation.
            first = client._coordinator.generation == FIRST_GENERATION
            self._group_is_new = first or not await self._has_committed(client)
        return self._group_is_new

    async def _has_committed(self, client: AIOKafkaConsumer) -> bool:
        for topic in self._source_topics:
            for partition in sorted(client.partitions_for_topic(topic) or ()):
                if await client.committed(TopicPartition(topic, partition)) is not None:
                    return True
        return False
