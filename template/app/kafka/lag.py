"""Consumer lag: how many messages a consumer has yet to handle, by partition."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from app.kafka import metrics

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 5.0


class LagMeter:
    """Compares the ends of the assigned partitions with what was handled, every few seconds."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._handled: dict[TopicPartition, int | None] = {}
        self._measured: set[TopicPartition] = set()

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        self._handled = dict.fromkeys(partitions)

    def revoked(self) -> None:
        for tp in self._measured:
            metrics.lag.remove(self._consumer, tp.topic, str(tp.partition))
        self._measured.clear()
        self._handled = {}

    def handled(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._handled.update(offsets)

    @asynccontextmanager
    async def measuring(self, client: AIOKafkaConsumer) -> AsyncIterator[None]:
        task = asyncio.create_task(self._measure(client), name=f"consumer-{self._consumer}-lag")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.revoked()

    async def _measure(self, client: AIOKafkaConsumer) -> None:
        while True:
            try:
                await self._measure_once(client)
            except KafkaError as error:
                log.debug("lag not measured", consumer=self._consumer, error=repr(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _measure_once(self, client: AIOKafkaConsumer) -> None:
        partitions = list(self._handled)
        if not partitions:
            return
        for tp in partitions:
            if self._handled.get(tp) is None:
                await self._seed(client, tp)
        ends = await client.end_offsets(partitions)
        for tp, end in ends.items():
            handled = self._handled.get(tp)
            if handled is not None:
                gauge = metrics.lag.labels(self._consumer, tp.topic, tp.partition)
                gauge.set(max(0, end - handled))
                self._measured.add(tp)

    async def _seed(self, client: AIOKafkaConsumer, tp: TopicPartition) -> None:
        offset = await client.committed(tp)
        if offset is None:  # nothing committed yet: counted from the beginning
            offset = (await client.beginning_offsets([tp]))[tp]
        if tp in self._handled and self._handled[tp] is None:
            self._handled[tp] = offset
