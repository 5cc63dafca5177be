"""The time to decode an event in the envelopes of others, compared with the service's own.

Run inside a rendered service with the sample domain: `python /path/to/benchmarks/envelopes.py`. Prints the median of
the processor time for each message, and its ratio to the same event in the service's own format. With the name of a
case (`… envelopes.py "plain JSON"`) it prints where that one spends it.
"""

import cProfile
import json
import sys
import time
import timeit
from collections.abc import Callable
from decimal import Decimal
from statistics import median
from typing import Any, ClassVar, Literal

from aiokafka import ConsumerRecord
from pydantic import BaseModel

from app.orders.events import OrderCreated, OrderLine
from app.platform.events.envelope import Decoder
from app.platform.events.event import BaseEvent, EventRegistry, EventTopic, EventType
from app.platform.kafka.codec import Header, encode
from app.platform.kafka.debezium import DebeziumChanges, DebeziumOutbox
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.envelopes import CloudEvents, PlainJson
from app.platform.tracing import Trace

ROUNDS, CALLS = 600, 30
LINES = [OrderLine(sku=f"sku-{n}", quantity=n, unit_price=Decimal("9.99")) for n in range(1, 6)]


class Row(BaseModel):
    """A row of orders, as Debezium shows it."""

    order_id: int
    order_version: int
    user_id: int
    status: str
    items: tuple[OrderLine, ...]
    total: Decimal


class RowChanged(BaseEvent):
    """A change of that row."""

    key_field: ClassVar[str] = "event_id"
    event_type: Literal["row.changed"] = "row.changed"
    op: str
    before: Row | None
    after: Row | None


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
    decoder: Decoder | None,
    value: Any,
    headers: list[Header],
    model: type[BaseEvent] = OrderCreated,
) -> Callable[[], object]:
    declared = EventTopic("Orders.v1", decoder) if decoder else None
    service = "estate" if decoder else None
    registry = EventRegistry("shop", [EventType(model, service=service, topic=declared)])
    text = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    topic = registry.topic(model)
    message, decode = record(topic, text, headers), EventDecoder(registry, {model}).decode
    assert decode(message, topic) is not None
    return lambda: decode(message, topic)


def owned(event: BaseEvent) -> tuple[bytes, list[Header]]:
    message = encode(event, EventRegistry("shop", [EventType(type(event))]), Trace("c"))
    return message.value or b"", list(message.headers)


def cases() -> dict[str, tuple[Callable[[], object], str]]:
    """Return for each case how it is decoded, and the case that it is compared with."""
    event = sample()
    fields = event.model_dump(mode="json", exclude={*BaseEvent.model_fields})
    value, headers = owned(event)
    id = str(event.event_id)
    routed: list[Header] = [("id", id.encode()), ("eventType", b"order.created")]
    identified = PlainJson(id=lambda body, _: f"{body['order_id']}-{body['order_version']}")
    changed = RowChanged(op="u", before=None, after=Row.model_validate(fields))
    return {
        "own": (decoding(None, value, headers), "own"),
        "CloudEvents, binary": (decoding(CloudEvents(), fields, headers), "own"),
        "CloudEvents, structured": (
            decoding(
                CloudEvents(),
                structured(event, fields),
                [("content-type", b"application/cloudevents+json")],
            ),
            "own",
        ),
        "plain JSON": (decoding(PlainJson(), fields, []), "own"),
        "plain JSON with an id": (decoding(identified, fields, []), "own"),
        "Debezium's outbox": (decoding(DebeziumOutbox(), fields, routed), "own"),
        "own change": (decoding(None, *owned(changed), RowChanged), "own change"),
        "Debezium's change": (
            decoding(DebeziumChanges(), change(fields), [], RowChanged),
            "own change",
        ),
    }


def structured(event: BaseEvent, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": str(event.event_id),
        "source": "/shop",
        "type": "order.created",
        "time": event.timestamp.isoformat(),
        "datacontenttype": "application/json",
        "data": fields,
    }


def change(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a change as Debezium's connector for PostgreSQL writes it, without schemas."""
    source = {
        "version": "3.3.1.Final",
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": 1_700_000_000_000,
        "snapshot": "false",
        "db": "shop",
        "sequence": '["24023119","24023128"]',
        "ts_us": 1_700_000_000_000_000,
        "ts_ns": 1_700_000_000_000_000_000,
        "schema": "public",
        "table": "orders",
        "txId": 555,
        "lsn": 24_023_128,
        "xmin": None,
    }
    return {
        "before": None,
        "after": fields,
        "source": source,
        "transaction": None,
        "op": "u",
        "ts_ms": 1_700_000_000_100,
        "ts_us": 1_700_000_000_100_000,
        "ts_ns": 1_700_000_000_100_000_000,
    }


def main() -> None:
    found = cases()
    if sys.argv[1:]:
        decode, _ = found[sys.argv[1]]
        with cProfile.Profile() as profile:
            for _ in range(20_000):
                decode()
        profile.print_stats("tottime")
        return
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):  # in turns, so that all see the same machine
        for name, (decode, _) in found.items():
            times[name].append(timeit.timeit(decode, number=CALLS, timer=time.process_time) / CALLS)
    for name, (_, base) in found.items():
        ratio = median(times[name]) / median(times[base])
        print(f"{name:25}{median(times[name]) * 1e6:6.2f} µs  {ratio:.2f}")


if __name__ == "__main__":
    main()
