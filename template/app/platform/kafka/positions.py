"""The position at which a consumer begins to read a partition, and how far it has passed markers."""

from collections.abc import Collection, Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from app.platform.kafka import metrics
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.topics import begins_at_the_oldest

log = structlog.get_logger(__name__)

FIRST_GENERATION = 1


class Positions:
    """The positions of one consumer in the partitions that it is assigned."""

    def __init__(self, consumer: str, topics: Collection[str], settings: KafkaSettings) -> None:
        self._consumer = consumer
        self._topics = topics
        self._settings = settings
        self._committed: dict[TopicPartition, int] = {}
        self._begun: set[TopicPartition] = set()
        self._group_is_new: bool | None = None

    def revoked(self) -> None:
        self._committed.clear()
        self._begun.clear()
        self._group_is_new = None

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._committed.update(offsets)

    async def begin(self, client: AIOKafkaConsumer, tp: TopicPartition, lost: int | None) -> int:
        """Begin to read `tp` and return the offset; `lost` is a position that is no longer there.

        Without one, the group has committed nothing. `KAFKA_AUTO_OFFSET_RESET=latest` is for new
        groups only: to an older one, such a partition was added, or made anew, and nobody has read
        what is in there.
        """
        # Asked for the first partition already: what this member commits makes no group older.
        from_end = self._settings.kafka_auto_offset_reset == "latest" and await self._is_new(client)
        oldest = lost is not None or begins_at_the_oldest(tp.topic, self._settings)
        if oldest or not from_end:
            await client.seek_to_beginning(tp)
        else:
            await client.seek_to_end(tp)
        begun = int(await client.position(tp))
        self._begun.add(tp)
        if lost is not None:
            self._warn(tp, lost, begun)
        return begun

    def _warn(self, tp: TopicPartition, lost: int, begun: int) -> None:
        # Retention deletes what a position points to; a topic that was made anew is shorter.
        expired = max(0, begun - lost)
        metrics.messages_expired.labels(self._consumer, tp.topic).inc(expired)
        log.warning(
            "position lost, reading on from the oldest message",
            consumer=self._consumer,
            topic=tp.topic,
            partition=tp.partition,
            position=lost,
            oldest=begun,
            expired=expired,
        )

    async def passed(
        self, client: AIOKafkaConsumer, unhandled: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """The offsets to commit of partitions in which nothing is `unhandled`.

        The client passes control records and aborted transactions without a word. Uncommitted, they
        would be lag for ever; and a group that has read nothing yet would be new at each start.
        """
        found = {}
        for tp in client.assignment().difference(unhandled):
            if tp not in self._begun and client.last_poll_timestamp(tp) is None:
                continue  # it has no position yet
            position = await client.position(tp)
            if position != self._committed.get(tp):
                found[tp] = position
        return found

    async def _is_new(self, client: AIOKafkaConsumer) -> bool:
        if self._group_is_new is None:
            # Members that start together are all new, though one of them may commit first. Which
            # generation it is, aiokafka tells nowhere else.
            first = client._coordinator.generation == FIRST_GENERATION
            self._group_is_new = first or not await self._has_committed(client)
        return self._group_is_new

    async def _has_committed(self, client: AIOKafkaConsumer) -> bool:
        for topic in self._topics:
            for partition in sorted(client.partitions_for_topic(topic) or ()):
                if await client.committed(TopicPartition(topic, partition)) is not None:
                    return True
        return False
