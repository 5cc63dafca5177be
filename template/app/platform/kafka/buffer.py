"""Records that were fetched and wait for their processing, such as delayed ones."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from app.platform.kafka.retry import due_at
from app.platform.kafka.topics import is_delay_topic

Batch = dict[TopicPartition, list[ConsumerRecord]]


class FetchBuffer:
    """The records of each partition that were fetched and not yet taken."""

    def __init__(self, source_topics: Mapping[str, str]) -> None:
        self._source_topics = source_topics
        self._records: Batch = {}

    def __iter__(self) -> Iterator[TopicPartition]:
        return iter(self._records)

    def add(
        self, client: AIOKafkaConsumer, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        for tp, records in fetched.items():
            self._records.setdefault(tp, []).extend(records)
            if self._due_at(records[-1]) is not None:
                client.pause(tp)  # a partition of delayed messages waits for its first one

    def take_due(self, client: AIOKafkaConsumer) -> Batch:
        """Remove and return the records that may be processed now."""
        now = datetime.now(UTC)
        batch: Batch = {}
        for tp, records in list(self._records.items()):
            due = self._count_due(records, now)
            if due:
                batch[tp] = records[:due]
            if due == len(records):
                del self._records[tp]
                client.resume(tp)
            else:
                self._records[tp] = records[due:]
        return batch

    def seconds_until_due(self) -> float | None:
        """Return the seconds until the next record is due; None if there is no record."""
        now = datetime.now(UTC)
        due = [self._due_at(records[0]) or now for records in self._records.values()]
        return max(0.0, (min(due) - now).total_seconds()) if due else None

    def discard(self, tp: TopicPartition) -> None:
        self._records.pop(tp, None)

    def clear(self) -> None:
        self._records.clear()

    def _due_at(self, record: ConsumerRecord) -> datetime | None:
        return due_at(record, self._source_topics[record.topic])

    def _count_due(self, records: Sequence[ConsumerRecord], now: datetime) -> int:
        """Count the leading records that are due: all of them outside delay topics."""
        topic = records[0].topic
        if not is_delay_topic(topic, self._source_topics[topic]):
            return len(records)
        for index, record in enumerate(records):
            due = self._due_at(record)
            if due is not None and due > now:
                return index
        return len(records)
