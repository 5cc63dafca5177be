import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Literal

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from app.kafka import consumer as consumer_module
from app.kafka.consumer import Consumer
from app.kafka.event import BaseEvent, EventRegistry, EventType
from app.kafka.producer import FakeProducer
from app.kafka.settings import KafkaSettings
from app.kafka.subscription import Subscription
from app.unit_of_work import UnitOfWork, UnitsOfWork

PARTITION = TopicPartition("shop.meter.read", 0)


class MeterRead(BaseEvent):
    key_field: ClassVar[str] = "meter"
    event_type: Literal["meter.read"] = "meter.read"
    meter: str


class EndlessProcessor:
    """Never done with a batch; remembers that it was told to stop."""

    def __init__(self) -> None:
        self.stopped = False

    async def process(self, batch: object, progress: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped = True


class FailingClient:
    """A client that cannot poll any more."""

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        raise KafkaError("the coordinator is lost")

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    def pause(self, *partitions: TopicPartition) -> None:
        pass


async def ignore(event: MeterRead, uow: UnitOfWork) -> None:
    pass


class FakeClient:
    """Gives one record, and starts `then` in the same moment."""

    def __init__(self, then: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._then = then
        self.started: asyncio.Task[None] | None = None

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        self.started = asyncio.create_task(self._then())
        return {PARTITION: [record()]}

    def resume(self, *partitions: TopicPartition) -> None:
        pass


def record() -> ConsumerRecord:
    return ConsumerRecord(*PARTITION, 0, 0, 0, b"k", b"{}", None, 1, 2, ())


def consumer() -> Consumer:
    return Consumer(
        Subscription("billing", {MeterRead: ignore}),
        EventRegistry("shop", [EventType(MeterRead)]),
        KafkaSettings(_env_file=None),
        UnitsOfWork(None, None),  # type: ignore[arg-type]  # nothing is applied here
        FakeProducer(),
    )


async def test_what_was_fetched_before_a_revocation_is_not_handled_after_it() -> None:
    billing = consumer()
    client = FakeClient(lambda: billing.on_partitions_revoked({PARTITION}))

    assert await billing._fetch(client) == {}


async def test_what_was_fetched_without_a_revocation_is_handled() -> None:
    billing = consumer()
    client = FakeClient(lambda: asyncio.sleep(0))

    assert await billing._fetch(client) == {PARTITION: [record()]}


async def test_a_batch_does_not_outlive_the_client_it_was_fetched_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    billing, processor = consumer(), EndlessProcessor()
    monkeypatch.setattr(consumer_module, "KEEP_ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(billing, "_processor", processor)

    with pytest.raises(KafkaError, match="the coordinator is lost"):
        await billing._work(FailingClient(), {PARTITION: [record()]})

    assert processor.stopped
