import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy import delete, select, update

from app import wiring
from app.orders.domain import Order, OrderStatus, TransitionNotAllowed
from app.orders.models import OrderRow
from app.orders.repository import SqlOrderRepository
from app.orders.service import OrderService
from app.orders.stream import ORDERS
from app.platform.database.engine import Database
from app.platform.errors import DomainError, IdempotencyKeyReused
from app.platform.event_store.model import EventRow, SnapshotRow
from app.platform.event_store.store import EventStore
from app.platform.events.event import EventRegistry
from app.platform.http.idempotency import IdempotencyRecord
from app.platform.outbox.model import OutboxRow
from app.platform.tracing import Trace, bind_trace
from app.users.models import User
from tests.api import assert_problem, pointers, unique
from tests.orders.api import change, new_order, place, sign_up
from tests.orders.stream.conftest import ITEMS, Cli, Shop
from tests.world import Api

# One transaction


async def test_an_order_its_events_and_its_messages_are_there_together(shop: Shop) -> None:
    order = await shop.place()
    paid = await shop.pay(order.id)
    assert await shop.folded() == [paid]
    published = await shop.published()
    assert [event["event_type"] for event in published] == ["order.created", "order.paid"]
    assert [event["order_version"] for event in published] == [1, 2]


async def test_nothing_is_left_of_a_transaction_that_fails(shop: Shop) -> None:
    async def fail() -> None:
        async with shop.units.begin() as uow:
            await shop.orders(uow).place(7, ITEMS)
            raise RuntimeError("at the end")

    with pytest.raises(RuntimeError, match="at the end"):
        await fail()
    assert [await shop.count(model) for model in (EventRow, OutboxRow)] == [0, 0]


async def test_only_registered_integration_events_leave_the_service(shop: Shop) -> None:
    for settle in (shop.pay, shop.cancel):
        await settle((await shop.place()).id)
    registry = EventRegistry("shop", wiring.service.events)
    async with shop.database.sessions() as session:
        rows = [*await session.scalars(select(OutboxRow))]
    assert len(rows) == await shop.count(EventRow) == 4
    assert {row.topic for row in rows} <= set(registry.owned_topics())
    internal = {entry.name for entry in ORDERS.types} - {"order.paid", "order.cancelled"}
    for event in await shop.published():
        assert event["event_type"] not in internal
        assert {"items", "total", "status", "order_version", "user_id"} <= event.keys()


async def test_the_messages_tell_the_times_of_the_store(shop: Shop) -> None:
    order = await shop.place()
    await shop.pay(order.id)
    async with shop.database.sessions() as session:
        times = [*await session.scalars(select(EventRow.recorded_at).order_by(EventRow.version))]
    published = [datetime.fromisoformat(event["timestamp"]) for event in await shop.published()]
    assert published == times


# Commands


async def test_a_repeated_command_appends_and_publishes_nothing(shop: Shop) -> None:
    order = await shop.place(command="key-1")
    await shop.pay(order.id)
    assert await shop.place(command="key-1") == order
    assert await shop.count(EventRow) == await shop.count(OutboxRow) == 2
    assert (await shop.place(command="key-2")).id != order.id


async def test_a_command_that_comes_again_as_another_one_is_refused(shop: Shop) -> None:
    order = await shop.place(command="key-1")
    await shop.pay(order.id)
    with pytest.raises(IdempotencyKeyReused):
        await shop.place(command="key-1", items=ITEMS[:1])
    async with shop.units.begin() as uow:
        uow.session.add(User(id=8, email="bob@example.com", username="bob"))
    with pytest.raises(IdempotencyKeyReused):
        await shop.place(command="key-1", user_id=8)
    assert await shop.count(EventRow) == await shop.count(OutboxRow) == 2


async def test_one_key_pays_or_cancels_an_order_and_never_both(shop: Shop) -> None:
    order = await shop.place(command="key-1")
    with bind_trace(Trace("story", command_id="key-1")):
        paid = await shop.pay(order.id)
        for settle in (shop.pay, shop.cancel):
            with pytest.raises(TransitionNotAllowed):
                await settle(order.id)
    assert await shop.folded() == [paid]


async def test_commands_that_come_twice_at_once_are_carried_out_once(shop: Shop) -> None:
    found = await asyncio.gather(*(shop.place(command="key-1") for _ in range(6)))
    assert len({order.id for order in found}) == 1
    assert await shop.count(EventRow) == await shop.count(OutboxRow) == 1


async def test_one_command_may_place_several_orders(shop: Shop) -> None:
    for _ in range(2):
        with bind_trace(Trace("story", causation_id="an-event")):
            async with shop.units.begin() as uow:
                service = shop.orders(uow)
                ids = [(await service.place(7, ITEMS)).id for _ in range(3)]
    assert len(set(ids)) == await shop.count(EventRow) == 3


async def test_an_event_says_who_and_why(shop: Shop) -> None:
    order = await shop.place(command="key-1")
    async with shop.database.sessions() as session:
        (stored,) = await EventStore(session, ORDERS).events(order.id)
    assert stored.metadata == {"correlation_id": "story", "command_id": "key-1", "actor": "ada"}


async def test_a_command_without_a_version_is_decided_on_the_new_state(shop: Shop) -> None:
    order = await shop.place()
    results = await asyncio.gather(
        *(settle(order.id) for settle in [shop.pay, shop.cancel] * 4), return_exceptions=True
    )
    assert sum(isinstance(result, Order) for result in results) == 1
    assert sum(isinstance(result, DomainError) for result in results) == 7
    assert await shop.count(EventRow) == await shop.count(OutboxRow) == 2


async def test_a_long_stream_gets_a_snapshot_with_its_append(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.orders.stream.ORDERS", replace(ORDERS, snapshot_every=2))
    order = await shop.place()
    assert await shop.count(SnapshotRow) == 0
    paid = await shop.pay(order.id)
    async with shop.database.sessions() as session:
        (row,) = await session.scalars(select(SnapshotRow))
        loaded = await EventStore(session, ORDERS).load(order.id)
    assert (row.version, row.state["status"]) == (2, "paid")
    assert loaded is not None
    assert loaded.state == paid


# HTTP


async def test_an_order_has_a_history(client: AsyncClient) -> None:
    headers = {"X-Actor": "ada", "X-Correlation-Id": "story", "Idempotency-Key": unique("key")}
    order = new_order(await sign_up(client))
    placed = (await client.post("/orders", json=order, headers=headers)).json()
    await change(client, placed["id"], "pay", '"1"')
    answer = await client.get(f"/orders/{placed['id']}/events")
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["events"]
    assert answer.json()["next_after"] is None
    assert [first["type"], second["type"]] == ["order.placed", "order.paid"]
    assert [first["version"], second["version"]] == [1, 2]
    assert first["data"] == {
        "order_id": placed["id"],
        "user_id": order["user_id"],
        "items": order["items"],
    }
    assert (first["actor"], first["correlation_id"]) == ("ada", "story")
    assert first["command_id"] == headers["Idempotency-Key"]
    assert second["actor"] is second["command_id"] is None


async def test_a_key_that_was_forgotten_belongs_to_its_request_still(
    api: Api, database: Database
) -> None:
    headers = {"Idempotency-Key": "key-1"}
    order = new_order(await sign_up(api.http))
    first = await api.http.post("/orders", json=order, headers=headers)
    async with database.sessions() as session, session.begin():
        await session.execute(delete(IdempotencyRecord))
    other = {**order, "user_id": await sign_up(api.http)}
    answer = await api.http.post("/orders", json=other, headers=headers)
    assert pointers(assert_problem(answer, 422)) == ["header /Idempotency-Key"]
    again = await api.http.post("/orders", json=order, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())


async def test_a_history_comes_in_pages(client: AsyncClient) -> None:
    order_id = (await place(client)).json()["id"]
    await change(client, order_id, "cancel", '"1"')
    url = f"/orders/{order_id}/events"
    first = (await client.get(url, params={"limit": 1})).json()
    rest = (await client.get(url, params={"after": first["next_after"]})).json()
    assert [event["version"] for event in first["events"] + rest["events"]] == [1, 2]
    assert (await client.get(url, params={"after": 2})).json() == {"events": [], "next_after": None}


async def test_a_missing_order_has_no_history(client: AsyncClient) -> None:
    assert_problem(await client.get(f"/orders/{2**62}/events"), 404)
    assert_problem(await client.get(f"/orders/{2**62}/as-of", params={"version": 1}), 404)


async def test_an_order_is_shown_as_it_was(client: AsyncClient) -> None:
    placed = await place(client)
    url = f"/orders/{placed.json()['id']}"
    paid = await change(client, placed.json()["id"], "pay", '"1"')
    for version, then in enumerate([placed, paid], start=1):
        answer = await client.get(f"{url}/as-of", params={"version": version})
        assert answer.json() == then.json()
        assert answer.headers["etag"] == then.headers["etag"]
    assert_problem(await client.get(f"{url}/as-of", params={"version": 3}), 404)


async def test_an_order_is_shown_as_it_was_at_a_time(client: AsyncClient) -> None:
    placed = await place(client)
    url = f"/orders/{placed.json()['id']}"
    paid = await change(client, placed.json()["id"], "pay", '"1"')
    events = (await client.get(f"{url}/events")).json()["events"]
    first, second = (datetime.fromisoformat(event["recorded_at"]) for event in events)
    moment = timedelta(microseconds=1)

    async def at(time: datetime) -> Any:
        return await client.get(f"{url}/as-of", params={"time": time.isoformat()})

    assert_problem(await at(first - moment), 404)
    assert (await at(first)).json() == (await at(second - moment)).json() == placed.json()
    assert (await at(second)).json() == (await at(second + moment)).json() == paid.json()


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"time": "2026-01-01T00:00:00"}, "time"),  # no time zone
        ({"time": "yesterday"}, "time"),
        ({"version": "0"}, "version"),
        ({"version": str(2**31)}, "version"),
        ({}, "version"),
        ({"version": "1", "time": "2026-01-01T00:00:00Z"}, "version"),
    ],
    ids=str,
)
async def test_a_time_that_is_none_is_refused(
    client: AsyncClient, parameters: dict[str, str], name: str
) -> None:
    answer = await client.get("/orders/1/as-of", params=parameters)
    assert pointers(assert_problem(answer, 422)) == [f"query /{name}"]


# The command line


async def test_streams_and_their_events_are_shown(cli: Cli, shop: Shop) -> None:
    order = await shop.place(command="key-1")
    await shop.pay(order.id)
    listed = (await cli("streams")).stdout.splitlines()
    assert listed[0].startswith(f"{order.id}  version 2  paid  ")
    assert listed[-1] == "1 stream"
    shown = (await cli("show", str(order.id))).stdout
    assert "order.placed\n  actor: ada\n  command_id: key-1\n  correlation_id: story\n" in shown
    assert '"unit_price": "3.50"' in shown
    missing = await cli("show", "99")
    assert (missing.exit_code, missing.stderr) == (1, "error: there is no order 99\n")


async def test_rows_without_events_get_those_that_led_to_them(cli: Cli, shop: Shop) -> None:
    async with shop.units.begin() as uow:
        old = OrderService(SqlOrderRepository(uow), uow.events)
        ids = [(await old.place(7, ITEMS)).id for _ in range(3)]
        await old.pay(ids[1], None)
        await old.cancel(ids[2], None)
        rows = [await SqlOrderRepository(uow).get(order_id) for order_id in ids]
    assert {order.status for order in rows if order is not None} == {*OrderStatus}
    messages = await shop.count(OutboxRow)
    assert (await cli("import")).stdout == "3 orders imported\n"
    assert (await cli("import")).stdout == "0 orders imported\n"
    assert await shop.folded() == rows
    assert await shop.count(OutboxRow) == messages
    assert (await shop.pay(ids[0])).version == 2


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("status", "lost", "is lost in version 1"), ("version", 3, "is placed in version 3")],
)
async def test_a_row_that_no_events_lead_to_stops_the_import(
    cli: Cli, shop: Shop, monkeypatch: pytest.MonkeyPatch, column: str, value: object, reason: str
) -> None:
    monkeypatch.setattr("app.platform.event_store.verification.BATCH", 1)
    async with shop.units.begin() as uow:
        old = OrderService(SqlOrderRepository(uow), uow.events)
        ids = [(await old.place(7, ITEMS)).id for _ in range(2)]
        odd = update(OrderRow).where(OrderRow.id == ids[1]).values({column: value})
        await uow.session.execute(odd)
    refused = await cli("import")
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"error: nothing is imported: order {ids[1]} {reason}")
    assert "let `_history` in app/orders/stream.py" in refused.stderr
    assert await shop.count(EventRow) == 0
