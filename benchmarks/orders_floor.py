"""The floor of requests about orders: bare FastAPI with the statements of the service, and nothing else.

It validates what the service validates, executes the same statements in one transaction, publishes the
same event, and gives the same answer, all written by hand with SQLAlchemy Core. It has no dependencies
between a route and its connection, and no middlewares, retries, problem details, tracing, logs, metrics,
domain, repositories or units of work.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import groupby
from typing import Annotated, Any
from uuid import uuid4
from zlib import crc32

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, Header, HTTPException, Query, Response
from pydantic_core import to_json
from sqlalchemy import bindparam, exists, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.orders.models import OrderItemRow, OrderRow, order_ids
from app.orders.router import OrderCreate, OrderPage, OrderResponse
from app.platform.http.dependencies import PathId
from app.platform.http.idempotency import IdempotencyRecord
from app.platform.http.schemas import Cursor, QueryId, encode_cursor
from app.users.models import User

Rows = list[dict[str, Any]]
Store = Callable[[AsyncConnection, dict[str, Any], Rows], Awaitable[datetime]]
Find = Callable[[AsyncConnection, Any], Awaitable[list[dict[str, Any]]]]

ORDERS, ITEMS, USERS = OrderRow.__table__, OrderItemRow.__table__, User.__table__
KEYS = IdempotencyRecord.__table__

NEXT_ID = select(order_ids.next_value()).where(exists().where(USERS.c.id == bindparam("user_id")))
CLAIM = upsert(KEYS).on_conflict_do_nothing().returning(KEYS.c.key)
COMPLETE = (
    update(KEYS)
    .where(KEYS.c.scope == bindparam("of_scope"), KEYS.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in ("status", "headers", "body")})
)
INSERT_ORDER = upsert(ORDERS).on_conflict_do_nothing().returning(ORDERS.c.created_at)
INSERT_ITEMS = insert(ITEMS)
SHOWN = [ORDERS.c[name] for name in ("id", "user_id", "status", "total", "version")]
SHOWN_ITEM = [ITEMS.c[name] for name in ("sku", "quantity", "unit_price")]
GET = (
    select(*SHOWN, *SHOWN_ITEM)
    .join_from(ORDERS, ITEMS, isouter=True)
    .where(ORDERS.c.id == bindparam("order_id"))
    .order_by(ITEMS.c.position)
)
TRANSACTION = text("SELECT pg_current_xact_id()::text, pg_postmaster_start_time()")
APPEND = text(
    "WITH writer AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(:kind, :lock))"
    " INSERT INTO events"
    " (category, stream_id, version, event_id, type, data_version, data, metadata, recorded_at)"
    " SELECT 'order', :id, 1, :event_id, 'order.placed', 2, CAST(CAST(:data AS text) AS jsonb),"
    " CAST(CAST(:metadata AS text) AS jsonb), clock_timestamp() FROM writer"
    " ON CONFLICT DO NOTHING RETURNING recorded_at"
)


def floor(variant: str) -> FastAPI:
    """Return the application that does the work of a rendering: base, outbox, outbox-cqrs, …"""
    modules = variant.split("-")
    publishing = outbox if "outbox" in modules else kafka
    store = append if "event_sourcing" in modules else store_rows
    find_one, find_page = views() if "cqrs" in modules else (one_of_tables, page_of_tables)
    url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1)
    engine = create_async_engine(url, pool_size=10, max_overflow=10)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with publishing() as (app.state.before_commit, app.state.after_commit):
            yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders", status_code=201, response_model=OrderResponse)
    async def place(
        order: OrderCreate, key: Annotated[str | None, Header(alias="Idempotency-Key")] = None
    ) -> Response:
        async with engine.begin() as connection:
            if key is not None:
                await claim(connection, key, order)
            placed, items = await insert_order(connection, order, store)
            message = created(placed, items)
            answer = OrderResponse.model_validate({**placed, "items": items})
            headers = {"ETag": '"1"', "Location": f"/orders/{placed['id']}"}
            body = answer.model_dump_json().encode()
            if key is not None:
                await complete(connection, key, headers, body)
            await app.state.before_commit(connection, message)
        await app.state.after_commit(message)
        return Response(body, 201, headers, "application/json")

    @app.get("/orders/{order_id}")
    async def get(order_id: PathId, response: Response) -> OrderResponse:
        async with engine.connect() as connection:
            found = await find_one(connection, order_id)
        if not found:
            raise HTTPException(404)
        response.headers["ETag"] = f'"{found[0]["version"]}"'
        return OrderResponse.model_validate(found[0])

    @app.get("/orders")
    async def page(
        user_id: QueryId | None = None,
        cursor: Cursor | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> OrderPage:
        async with engine.connect() as connection:
            found = await find_page(connection, (user_id, cursor, limit + 1))
        more = len(found) > limit
        return OrderPage(
            items=[OrderResponse.model_validate(each) for each in found[:limit]],
            next_cursor=encode_cursor(found[limit - 1]["id"]) if more else None,
        )

    return app


# Placing an order


async def claim(connection: AsyncConnection, key: str, order: OrderCreate) -> None:
    fingerprint = sha256(order.model_dump_json().encode()).digest()
    new = {"scope": "POST /orders", "key": key, "fingerprint": fingerprint}
    if await connection.scalar(CLAIM, new) is None:
        raise HTTPException(409)


async def complete(
    connection: AsyncConnection, key: str, headers: dict[str, str], body: bytes
) -> None:
    answer = {"status": 201, "headers": headers, "body": body}
    await connection.execute(COMPLETE, {"of_scope": "POST /orders", "of_key": key, **answer})


async def insert_order(
    connection: AsyncConnection, order: OrderCreate, store: Store
) -> tuple[dict[str, Any], Rows]:
    order_id = await connection.scalar(NEXT_ID, {"user_id": order.user_id})
    if order_id is None:
        raise HTTPException(422)
    total = sum((item.quantity * item.unit_price for item in order.items), Decimal(0))
    placed = {
        "id": order_id,
        "user_id": order.user_id,
        "status": "placed",
        "total": total,
        "version": 1,
    }
    items = [
        {"sku": item.sku, "quantity": item.quantity, "unit_price": item.unit_price}
        for item in order.items
    ]
    at = await store(connection, placed, items)
    return {**placed, "at": at}, items


async def store_rows(connection: AsyncConnection, order: dict[str, Any], items: Rows) -> datetime:
    at: datetime = (await connection.execute(INSERT_ORDER, order)).scalar_one()
    await connection.execute(INSERT_ITEMS, numbered(order["id"], items))
    return at


def numbered(order_id: int, items: Rows) -> Rows:
    return [{"order_id": order_id, "position": n, **item} for n, item in enumerate(items)]


NEW = upsert(ORDERS)
UPSERT_ORDER = NEW.on_conflict_do_update(
    index_elements=["id"],
    set_={column.name: NEW.excluded[column.name] for column in ORDERS.c},
    where=NEW.excluded.version > ORDERS.c.version,
)
ADD_ITEMS = upsert(ITEMS).on_conflict_do_nothing()
LOCK = {"kind": 0x45564E54, "lock": crc32(b"order") - 2**31}


async def append(connection: AsyncConnection, order: dict[str, Any], items: Rows) -> datetime:
    placed = {"order_id": order["id"], "user_id": order["user_id"], "items": items}
    event = {
        "id": order["id"],
        "event_id": uuid4(),
        "data": to_json(placed).decode(),
        "metadata": to_json({"correlation_id": str(uuid4())}).decode(),
    }
    at: datetime = (await connection.execute(APPEND, {**event, **LOCK})).scalar_one()
    await connection.execute(UPSERT_ORDER, {**order, "created_at": at, "updated_at": at})
    await connection.execute(ADD_ITEMS, numbered(order["id"], items))
    return at


# Publishing the event

Message = dict[str, Any]
Publishing = tuple[
    Callable[[AsyncConnection, Message], Awaitable[None]], Callable[[Message], Awaitable[None]]
]


def created(order: dict[str, Any], items: Rows) -> Message:
    """Return the message of `order.created`, as a row of the outbox."""
    service, id, at = os.environ["SERVICE_NAME"], str(uuid4()), order["at"].astimezone(UTC)
    event = {
        "event_id": id,
        "timestamp": at,
        "version": "1.1.0",
        "event_type": "order.created",
        "order_id": order["id"],
        "order_version": 1,
        "user_id": order["user_id"],
        "status": "placed",
        "items": items,
        "total": order["total"],
        "placed_at": at,
    }
    return {
        "topic": f"{service}.order.created",
        "key": str(order["id"]).encode(),
        "value": to_json(event),
        "ce_id": id,
        "ce_type": "order.created",
        "ce_source": f"/{service}",
        "ce_time": at.isoformat(),
        "correlation_id": str(uuid4()),
        "traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
        "headers": {"ce_specversion": "1.0", "content-type": "application/json"},
    }


@asynccontextmanager
async def outbox() -> AsyncIterator[Publishing]:
    from app.platform.outbox.model import OutboxRow

    insert_message = insert(OutboxRow.__table__)

    async def write(connection: AsyncConnection, message: Message) -> None:
        bucket = 320_000 + crc32(b"order\0" + message["key"]) % 32
        await connection.execute(insert_message, {"bucket": bucket, **message})

    async def nothing(message: Message) -> None: ...

    yield write, nothing


@asynccontextmanager
async def kafka() -> AsyncIterator[Publishing]:
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
    )

    async def ask_for_the_transaction(connection: AsyncConnection, message: Message) -> None:
        (await connection.execute(TRANSACTION)).one()

    async def send(message: Message) -> None:
        headers = {**message, **message["headers"]}
        for name in ("topic", "key", "value", "headers"):
            del headers[name]
        encoded = [(name, value.encode()) for name, value in headers.items()]
        await producer.send_and_wait(
            message["topic"], message["value"], message["key"], headers=encoded
        )

    await producer.start()
    try:
        yield ask_for_the_transaction, send
    finally:
        await producer.stop()


# Reading orders


async def one_of_tables(connection: AsyncConnection, order_id: int) -> Rows:
    return [*orders_of((await connection.execute(GET, {"order_id": order_id})).all())]


def orders_of(rows: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for order, items in groupby(rows, key=lambda row: row[:5]):
        id, user_id, status, total, version = order
        yield {
            "id": id,
            "user_id": user_id,
            "status": status,
            "total": total,
            "version": version,
            "items": [item_of(row[5:]) for row in items],
        }


def item_of(row: Sequence[Any]) -> dict[str, Any]:
    sku, quantity, unit_price = row
    return {"sku": sku, "quantity": quantity, "unit_price": unit_price}


async def page_of_tables(
    connection: AsyncConnection, wanted: tuple[int | None, int | None, int]
) -> Rows:
    orders = paged(select(*SHOWN), ORDERS.c.id, ORDERS.c.user_id, wanted).subquery()
    query = (
        select(*orders.c, *SHOWN_ITEM)
        .join_from(orders, ITEMS, ITEMS.c.order_id == orders.c.id, isouter=True)
        .order_by(orders.c.id.desc(), ITEMS.c.position)
    )
    return [*orders_of((await connection.execute(query)).all())]


def paged(query: Any, id: Any, user: Any, wanted: tuple[int | None, int | None, int]) -> Any:
    user_id, before, limit = wanted
    query = query.order_by(id.desc()).limit(limit)
    if user_id is not None:
        query = query.where(user == user_id)
    return query if before is None else query.where(id < before)


def views() -> tuple[Find, Find]:
    from app.orders.customer_names import CustomerNameRow
    from app.orders.views import OrderViewRow

    names, orders = CustomerNameRow.__table__, OrderViewRow.__table__
    all_views = select(*orders.c, names.c.username).outerjoin(
        names, names.c.user_id == orders.c.user_id
    )
    one = all_views.where(orders.c.order_id == bindparam("of"))

    def shown(row: Any) -> dict[str, Any]:
        return {**row, "id": row["order_id"]}

    async def find_one(connection: AsyncConnection, order_id: int) -> Rows:
        rows = (await connection.execute(one, {"of": order_id})).mappings()
        return [shown(row) for row in rows]

    async def find_page(
        connection: AsyncConnection, wanted: tuple[int | None, int | None, int]
    ) -> Rows:
        query = paged(all_views, orders.c.order_id, orders.c.user_id, wanted)
        return [shown(row) for row in (await connection.execute(query)).mappings()]

    return find_one, find_page
