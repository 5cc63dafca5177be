"""Producing: the service's producer, plain aiokafka, FastStream and confluent-kafka.

All send the same encoded events, headers and all, to three partitions of one broker: acks=all,
idempotent, lz4, no linger. aiokafka fills batches of 16 KiB, which is what librdkafka is held to,
too; one side more has librdkafka's own sizes (up to 1 MB). librdkafka works in C, in a thread of its
own, so its side has the second core. FastStream adds a correlation id to each message.

- *all at once*: everything is handed over, then all acknowledgements are awaited. The service makes
  batches of up to 256 kB for that, each with one acknowledgement.
- *32 senders* and *one sender*: each awaits the acknowledgement of a message before its next one.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from faststream.kafka import KafkaBroker
from harness import TRACE, Counted, Side, Stage, Watch, counted, run
from results import Area, Comparison, Figures

from app.platform.events.event import EventType
from app.platform.kafka.codec import Message, encode
from app.platform.kafka.producer import KafkaProducer

Send = Callable[[Message], Awaitable[object]]
SendAll = Callable[[Sequence[Message]], Awaitable[object]]
Client = Callable[[str], AbstractAsyncContextManager[tuple[Send, SendAll]]]


@asynccontextmanager
async def service(stage: Stage) -> AsyncIterator[tuple[Send, SendAll]]:
    async with KafkaProducer(stage.settings("bench")).running() as producer:

        async def send_all(messages: Sequence[Message]) -> None:
            assert not any(await producer.send_all(messages))

        await producer.ping()
        yield producer.send, send_all


@asynccontextmanager
async def plain(stage: Stage) -> AsyncIterator[tuple[Send, SendAll]]:
    client = AIOKafkaProducer(
        bootstrap_servers=stage.servers.kafka_bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
    )

    async def send(m: Message) -> None:
        await client.send_and_wait(m.topic, m.value, m.key, headers=list(m.headers))

    async def send_all(messages: Sequence[Message]) -> None:
        waiting = [
            await client.send(m.topic, m.value, m.key, headers=list(m.headers)) for m in messages
        ]
        await asyncio.gather(*waiting)

    await client.start()
    try:
        yield send, send_all
    finally:
        await client.stop()


@asynccontextmanager
async def faststream(stage: Stage) -> AsyncIterator[tuple[Send, SendAll]]:
    broker = KafkaBroker(
        stage.servers.kafka_bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        logger=None,
    )

    def publish(m: Message, no_confirm: bool) -> Awaitable[object]:
        headers = {name: (value or b"").decode() for name, value in m.headers}
        return broker.publish(m.value, m.topic, key=m.key, headers=headers, no_confirm=no_confirm)

    async def send_all(messages: Sequence[Message]) -> None:
        await asyncio.gather(*[await publish(message, True) for message in messages])

    await broker.start()
    try:
        yield lambda message: publish(message, False), send_all
    finally:
        await broker.stop()


def confluent(**options: object) -> Callable[[Stage], AbstractAsyncContextManager]:
    """Send as in its own asyncio example: a thread polls, and passes results to the loop."""

    @asynccontextmanager
    async def client(stage: Stage) -> AsyncIterator[tuple[Send, SendAll]]:
        loop = asyncio.get_running_loop()
        producer = Producer(
            {
                "bootstrap.servers": stage.servers.kafka_bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 0,
                "queue.buffering.max.messages": 1_000_000,
                **options,
            }
        )
        ended = threading.Event()

        def poll() -> None:
            while not ended.is_set():
                producer.poll(0.05)

        async def send(m: Message) -> None:
            sent: asyncio.Future[None] = loop.create_future()

            def delivered(error: object, _message: object) -> None:
                assert error is None, error
                loop.call_soon_threadsafe(sent.set_result, None)

            producer.produce(
                m.topic, m.value, m.key, headers=list(m.headers), on_delivery=delivered
            )
            await sent

        async def send_all(messages: Sequence[Message]) -> None:
            failed: list[object] = []

            def delivered(error: object, _message: object) -> None:
                if error is not None:
                    failed.append(error)

            for m in messages:
                producer.produce(
                    m.topic, m.value, m.key, headers=list(m.headers), on_delivery=delivered
                )
            assert await asyncio.to_thread(producer.flush, 60) == 0
            assert not failed, failed[0]

        poller = threading.Thread(target=poll)
        poller.start()
        try:
            yield send, send_all
        finally:
            ended.set()
            poller.join()
            producer.flush(10)

    return client


OURS = "service"
CLIENTS = {
    OURS: service,
    "plain aiokafka": plain,
    "FastStream": faststream,
    "confluent-kafka": confluent(**{"batch.size": 16_384}),
    "confluent-kafka, its own batch sizes": confluent(),
}


def sending(stage: Stage, client: str, count: int, senders: int) -> Side:
    how = {0: "all at once", 1: "one sender"}.get(senders, f"{senders} senders")

    async def measure() -> Figures:
        _, registry = await stage.topics([EventType(Counted)])
        messages = [encode(e, registry, TRACE) for e in counted(count, "x" * 200)]
        async with CLIENTS[client](stage) as (send, send_all):
            await send(messages[0])  # connections and metadata are there from here on

            async def sender(number: int) -> None:
                for message in messages[number::senders]:
                    await send(message)

            watch = Watch()
            if senders:
                await asyncio.gather(*(sender(number) for number in range(senders)))
            else:
                await send_all(messages)
            return watch.figures(count)

    return Side(f"{client}, {how}", "messages/s", measure)


def growing(stage: Stage, count: int, label: str) -> Side:
    return sending(stage, OURS, count, 0)._replace(name=f"{OURS}, growth {label}", rounds=2)


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    yield [
        *(sending(stage, client, int(40_000 * scale), 0) for client in CLIENTS),
        *(sending(stage, client, int(8_000 * scale), 32) for client in CLIENTS),
        *(sending(stage, client, int(1_000 * scale), 1) for client in CLIENTS),
        *(growing(stage, int(1_000 * scale) * times, f"x{times}") for times in (1, 10, 100)),
    ]


COMPARISONS = [
    *(
        Comparison(
            f"{how}, beside {client}",
            f"{OURS}, {how}",
            f"{client}, {how}",
            ">= 0.8" if client == "plain aiokafka" else "",
        )
        for how in ("all at once", "32 senders", "one sender")
        for client in list(CLIENTS)[1:]
    ),
    Comparison("10 times the messages", f"{OURS}, growth x10", f"{OURS}, growth x1", growth=True),
    Comparison("100 times the messages", f"{OURS}, growth x100", f"{OURS}, growth x1", growth=True),
]

if __name__ == "__main__":
    run(Area("produce", "Producing", __doc__ or "", COMPARISONS), plan)
