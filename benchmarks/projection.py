"""The read side: events a second into the read model, and rows a second in a rebuild.

- *projector*: the service's consumer of `order-views`, from a topic of `order.created` events to rows
  of the read model: validation, inbox, the turn that a rebuild would take, upsert.
- *floor*: getmany, json.loads and one multi-row upsert by asyncpg alone, then the offsets.
- *rebuild*: as `app projections rebuild` does it, from the tables of orders, while the old read model
  serves.
- *rebuild floor*: the same rows in batches of the same size, read, folded in Python and copied to a table
  with the same indexes by asyncpg alone (COPY), each batch in a transaction.
- *one INSERT ... SELECT*: the same in the database, which no service could beat.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

from aiokafka import AIOKafkaConsumer
from harness import TRACE, Side, Stage, Watch, run
from results import Area, Comparison, Figures

from app.orders.events import EVENTS, OrderCreated, OrderLine
from app.orders.projections import SUBSCRIPTIONS
from app.orders.views import ORDER_ROWS, ORDER_VIEWS
from app.platform.cli.projections import BATCH
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.health import Health
from app.platform.kafka.codec import encode
from app.platform.kafka.consumers import consuming
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.projections.rebuild import Rebuildable

(PROJECTOR,) = (each for each in SUBSCRIPTIONS if each.name == ORDER_VIEWS.name)
ROWS = "SELECT count(*) FROM order_views"
# The ids are as large as there are events, and never seen before: the last one is the newest row.
LAST = "SELECT EXISTS (SELECT FROM order_views WHERE order_id = $1)"

FLOOR = """
    INSERT INTO order_views
        (order_id, user_id, status, items, item_count, total, version, placed_at, updated_at)
    SELECT id, 1, 'placed', items::jsonb, 3, total::numeric, 1, at::timestamptz, at::timestamptz
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS new (id, items, total, at)
    ON CONFLICT (order_id) DO UPDATE SET version = excluded.version
        WHERE excluded.version > order_views.version
"""

ORDERS = """
    INSERT INTO orders (id, user_id, status, total, version)
    SELECT n, 1, 'placed', 19.00, 1 FROM generate_series(1, $1::int) AS n
"""
ITEMS = """
    INSERT INTO order_items (order_id, position, sku, quantity, unit_price)
    SELECT n, position, 'sku-' || position, 1, 9.50
    FROM generate_series(1, $1::int) AS n, generate_series(0, 1) AS position
"""
IN_ONE_STATEMENT = """
    INSERT INTO order_views
        (order_id, user_id, status, items, item_count, total, version, placed_at, updated_at)
    SELECT o.id, o.user_id, o.status,
        jsonb_agg(jsonb_build_object('sku', i.sku, 'quantity', i.quantity,
            'unit_price', i.unit_price::text) ORDER BY i.position),
        sum(i.quantity), o.total, o.version, o.created_at, o.updated_at
    FROM orders AS o JOIN order_items AS i ON i.order_id = o.id GROUP BY o.id
"""


ORDERS_AFTER = """
    SELECT id, user_id, status, total, version, created_at, updated_at
    FROM orders WHERE id > $1 ORDER BY id LIMIT $2
"""
ITEMS_BETWEEN = """
    SELECT order_id, sku, quantity, unit_price
    FROM order_items WHERE order_id BETWEEN $1 AND $2 ORDER BY order_id, position
"""


class Silent:
    """A publisher for projectors, which publish nothing."""

    async def publish(self, event: BaseEvent) -> None:
        raise AssertionError(event)

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        pass


def order(number: int, at: datetime) -> OrderCreated:
    lines = tuple(
        OrderLine(sku=f"sku-{n}", quantity=1 + n, unit_price=Decimal("9.50")) for n in range(2)
    )
    return OrderCreated(
        timestamp=at,
        order_id=number,
        order_version=1,
        user_id=1,
        status="placed",
        items=lines,
        total=Decimal("28.50"),
        placed_at=at,
    )


@asynccontextmanager
async def filled_topic(
    stage: Stage, events: int
) -> AsyncIterator[tuple[KafkaSettings, EventRegistry, KafkaProducer]]:
    settings, registry = await stage.topics(EVENTS, [PROJECTOR])
    await stage.truncate("inbox", "order_views")
    now = datetime.now(UTC)
    async with KafkaProducer(settings).running() as producer:
        for start in range(1, events + 1, 5_000):
            numbers = range(start, min(start + 5_000, events + 1))
            messages = [encode(order(number, now), registry, TRACE) for number in numbers]
            assert not any(await producer.send_all(messages))
        await stage.settle("inbox", "order_views")
        yield settings, registry, producer


async def projected(stage: Stage, events: int) -> Figures:
    units = UnitOfWorkFactory(stage.database.sessions, lambda _session: Silent())
    async with (
        filled_topic(stage, events) as (settings, registry, producer),
        consuming([PROJECTOR], registry, settings, units, producer, Health()) as (consumer,),
    ):
        while not consumer.status.assigned:
            await asyncio.sleep(0.01)
        watch = Watch()
        while not await stage.connection.fetchval(LAST, events):
            await asyncio.sleep(0.01)
        while await stage.connection.fetchval(ROWS) < events:
            await asyncio.sleep(0.01)
        return watch.figures(events)


async def floor(stage: Stage, events: int) -> Figures:
    async with filled_topic(stage, events) as (settings, registry, _):
        consumer = AIOKafkaConsumer(
            registry.topic(OrderCreated),
            bootstrap_servers=settings.kafka_bootstrap_servers,
            group_id=settings.kafka_group_id,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            seen, watch = 0, Watch()
            while seen < events:
                batch = await consumer.getmany(timeout_ms=500, max_records=2_000)
                orders = [json.loads(r.value) for records in batch.values() for r in records]
                if orders:
                    await stage.connection.execute(
                        FLOOR,
                        [each["order_id"] for each in orders],
                        [json.dumps(each["items"]) for each in orders],
                        [each["total"] for each in orders],
                        [each["timestamp"] for each in orders],
                    )
                    await consumer.commit()
                seen += len(orders)
            return watch.figures(events)
        finally:
            await consumer.stop()


async def orders_in_tables(stage: Stage, rows: int) -> None:
    await stage.truncate("users", "orders", "order_items", "order_views")
    await stage.connection.execute(
        "INSERT INTO users (id, email, username) VALUES (1, 'a@example.com', 'a')"
    )
    await stage.connection.execute(ORDERS, rows)
    await stage.connection.execute(ITEMS, rows)
    await stage.settle("orders", "order_items", "order_views")


async def rebuilt(stage: Stage, rows: int) -> Figures:
    await orders_in_tables(stage, rows)
    rebuild = Rebuildable(ORDER_VIEWS, ORDER_ROWS).rebuild(stage.database, BATCH)
    watch = Watch()
    await rebuild.run(lambda _progress: None)
    figures = watch.figures(rows)
    assert await stage.connection.fetchval(ROWS) == rows
    return figures


async def rebuild_floor(stage: Stage, rows: int) -> Figures:
    await orders_in_tables(stage, rows)
    connection, last, done = stage.connection, 0, 0
    watch = Watch()
    await connection.execute("CREATE TABLE copied (LIKE order_views INCLUDING ALL)")
    while orders := await connection.fetch(ORDERS_AFTER, last, BATCH):
        items = defaultdict(list)
        for id, sku, quantity, price in await connection.fetch(
            ITEMS_BETWEEN, orders[0]["id"], orders[-1]["id"]
        ):
            items[id].append({"sku": sku, "quantity": quantity, "unit_price": str(price)})
        records = [
            (id, user, status, json.dumps(items[id]), sum(i["quantity"] for i in items[id]), *rest)
            for id, user, status, *rest in orders
        ]
        async with connection.transaction():
            await connection.copy_records_to_table("copied", records=records)
        last, done = orders[-1]["id"], done + len(orders)
    await connection.execute("ANALYZE copied")
    figures = watch.figures(rows)
    assert await connection.fetchval("SELECT count(*) FROM copied") == rows == done
    await connection.execute("DROP TABLE copied")
    return figures


async def in_one_statement(stage: Stage, rows: int) -> Figures:
    await orders_in_tables(stage, rows)
    watch = Watch()
    await stage.connection.execute(IN_ONE_STATEMENT)
    figures = watch.figures(rows)
    assert await stage.connection.fetchval(ROWS) == rows
    return figures


SIDES = [
    ("projector", "events/s", 20_000, projected),
    ("floor", "events/s", 20_000, floor),
    ("rebuild", "rows/s", 30_000, rebuilt),
    ("rebuild floor", "rows/s", 30_000, rebuild_floor),
    ("one INSERT ... SELECT", "rows/s", 30_000, in_one_statement),
    *((f"projector, growth x{n}", "events/s", 600 * n, projected) for n in (1, 10, 100)),
    *((f"rebuild, growth x{n}", "rows/s", 600 * n, rebuilt) for n in (1, 10, 100)),
]


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    def side(name: str, unit: str, count: int, measure: object) -> Side:
        scaled = max(1, int(count * scale))
        return Side(name, unit, lambda: measure(stage, scaled), 2 if "growth" in name else 9)

    yield [side(*entry) for entry in SIDES]


COMPARISONS = [
    Comparison("projector, beside the floor", "projector", "floor", ">= 0.6"),
    Comparison("rebuild, beside its floor", "rebuild", "rebuild floor", ">= 0.6"),
    Comparison("rebuild, beside one statement", "rebuild", "one INSERT ... SELECT"),
    *(
        Comparison(
            f"{operation}: {n} times as much",
            f"{operation}, growth x{n}",
            f"{operation}, growth x1",
            "",
            True,
        )
        for operation in ("projector", "rebuild")
        for n in (10, 100)
    ),
]

if __name__ == "__main__":
    run(Area("projection", "Read side", __doc__ or "", COMPARISONS), plan)
