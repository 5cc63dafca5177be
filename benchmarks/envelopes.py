"""The time to decode an event in the envelopes of others, compared with the service's own.

Run inside a rendered service with the sample domain: `python /path/to/benchmarks/envelopes.py`.
"""

import json
import timeit
from collections.abc import Callable
from decimal import Decimal

from aiokafka import ConsumerRecord

from app.orders.events import OrderCreated, OrderLine
from app.platform.events.envelope import Decoder
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType
from app.platform.kafka.codec import Header, encode
from app.platform.kafka.debezium import DebeziumOutbox
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.envelopes import CloudEvents, PlainJson
from app.platform.tracing import Trace

ROUNDS, CALLS = 600, 30
LINES = [OrderLine(sku=f"sku-{n}", quantity=n, unit_price=Decimal("9.99")) for n in range(1, 6)]


def sample() -> OrderCreated:
    return OrderCreated(
        order_id=1,
        order_version=1,
        user_id=3,
        status="placed",
        items=tuple(LINES),
        total=Decimal("149.85"),
    )


def record(topic: str, value: bytes, headers: list[Header]) -> ConsumerRecord:
    return ConsumerRecord(
        topic=topic,
        partition=0,
        offset=1,
        timestamp=1_700_000_000_000,
        timestamp_type=0,
        key=b"1",
        value=value,
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=len(value),
        headers=tuple(headers),
    )


def decoding(
    topic: str, decoder: Decoder | None, value: bytes, headers: list[Header]
) -> Callable[[], object]:
    declared = EventTopic(topic, decoder) if decoder else None
    service = "estate" if decoder else None
    registry = EventRegistry("shop", [EventType(OrderCreated, service=service, topic=declared)])
    message, decode = record(topic, value, headers), EventDecoder(registry, {OrderCreated}).decode
    assert decode(message, topic) is not None
    return lambda: decode(message, topic)


def cases() -> dict[str, Callable[[], object]]:
    event = sample()
    own = encode(event, EventRegistry("shop", [EventType(OrderCreated)]), Trace("c"))
    fields = event.model_dump(mode="json", exclude={*BaseEvent.model_fields})
    data, id = json.dumps(fields).encode(), str(event.event_id)
    structured = {
        "specversion": "1.0",
        "id": id,
        "source": "/shop",
        "type": "order.created",
        "time": event.timestamp.isoformat(),
        "data": fields,
    }
    routed: list[Header] = [("id", id.encode()), ("eventType", b"order.created")]
    whole = [("content-type", b"application/cloudevents+json")]
    return {
        "own": decoding("shop.order.created", None, own.value or b"", list(own.headers)),
        "CloudEvents, binary": decoding("T", CloudEvents(), data, list(own.headers)),
        "CloudEvents, structured": decoding(
            "T", CloudEvents(), json.dumps(structured).encode(), [*whole]
        ),
        "plain JSON": decoding("T", PlainJson(), data, []),
        "Debezium's outbox": decoding("T", DebeziumOutbox(), data, routed),
    }


def main() -> None:
    best = dict.fromkeys(found := cases(), float("inf"))
    for _ in range(ROUNDS):  # in turns, so that all see the same machine
        for name, decode in found.items():
            best[name] = min(best[name], timeit.timeit(decode, number=CALLS) / CALLS)
    for name, seconds in best.items():
        print(f"{name:25}{seconds * 1e6:6.2f} µs  {seconds / best['own']:.2f}")


if __name__ == "__main__":
    main()
