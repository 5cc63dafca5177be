"""Records that were fetched and wait for their processing, such as delayed ones."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from app.platform.kafka.retry import due_at
from app.platform.kafka.topics import is_delay_topic

Batch = dict[TopicPartition, list[ConsumerRecord]]


class FetchBuffer:
    """The records of each partition that were fetched and not yet taken."""

    def __init__(self) -> None:
        self._records: Batch = {}

    def __iter__(self) -> Iterator[TopicPartition]:
        return iter(self._records)

    def add(
        self, client: AIOKafkaConsumer, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        for tp, records in fetched.items():
            self._records.setdefault(tp, []).extend(records)
            if due_at(records[-1]) is not None:
                client.pause(tp)  # a partition of delayed messages waits for its first one

    def take_due(self, client: AIOKafkaConsumer) -> Batch:
        """Remove and return the records that may be processed now."""
        now = datetime.now(UTC)
        batch: Batch = {}
        for tp, records in list(self._records.items()):
            due = _count_due(records, now) if is_delay_topic(tp.topic) else len(records)
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
        due = [due_at(records[0]) or now for records in self._records.values()]
        return max(0.0, (min(due) - now).total_seconds()) if due else None

    def discard(self, tp: TopicPartition) -> None:
        self._records.pop(tp, None)

    def clear(self) -> None:
        self._records.clear()


def _count_due(records: Sequence[ConsumerRecord], now: datetime) -> int:
    """Count the leading records of a delay topic that are due."""
    for index, record in enumerate(records):
        due = due_at(record)
        if due is not None and due > now:
            return index
    return len(records)
