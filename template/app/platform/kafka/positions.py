"""The positions of a consumer: where it starts to read a partition, and what it skips."""

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

    async def start(self, client: AIOKafkaConsumer, tp: TopicPartition, lost: int | None) -> int:
        """Seek to the start position of `tp` and return it; `lost` is a committed one out of range.

        `KAFKA_AUTO_OFFSET_RESET=latest` is for new groups only. For any other group, a partition
        without a committed offset was added or created again, and nobody has read its messages.
        """
        # Determined at the first partition, before this member's own commits could count.
        from_end = self._settings.kafka_auto_offset_reset == "latest" and await self._is_new(client)
        origin = self._source_topics[tp.topic]
        oldest = lost is not None or reads_from_earliest(tp.topic, origin, self._settings)
        if oldest or not from_end:
            await client.seek_to_beginning(tp)
        else:
            await client.seek_to_end(tp)
        start = int(await client.position(tp))
        self._started.add(tp)
        if lost is not None:
            self._report_lost(tp, lost, start)
        return start

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
