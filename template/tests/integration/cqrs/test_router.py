"""What the running service's read side answers."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from httpx import AsyncClient

from tests.contract.api import assert_problem, change, new_user, place, pointers
from tests.eventually import eventually

ITEMS = [
    {"sku": "tea-250g", "quantity": 2, "unit_price": "3.50"},
    {"sku": "cup", "quantity": 1, "unit_price": "12.00"},
]


async def customer(client: AsyncClient) -> tuple[int, str]:
    answer = await client.post("/users", json=new_user())
    return answer.json()["id"], answer.json()["username"]


async def with_name(client: AsyncClient, order_id: int, version: int) -> dict[str, Any]:
    """The order's view, once it has come that far and its customer is known, too."""

    async def read() -> dict[str, Any]:
        parameters = {"min_version": version}
        answer = await client.get(f"/order-views/{order_id}", params=parameters)
        found: dict[str, Any] = answer.json()
        return found

    return await eventually(read, lambda view: view.get("customer_name") is not None)


async def test_an_order_is_shown_with_its_customer(client: AsyncClient) -> None:
    user_id, name = await customer(client)
    placed = (await place(client, user_id, items=ITEMS)).json()
    view = await with_name(client, placed["id"], 1)
    times = {"placed_at": view["placed_at"], "updated_at": view["updated_at"]}
    assert view == placed | {"customer_name": name, "item_count": 3} | times
    assert view["placed_at"] == view["updated_at"]


async def test_a_change_moves_the_time_of_the_last_change(client: AsyncClient) -> None:
    placed = (await place(client)).json()
    await change(client, placed["id"], "pay", '"1"')
    view = await with_name(client, placed["id"], 2)
    assert view["status"] == "paid"
    assert view["placed_at"] < view["updated_at"]


async def test_the_view_has_the_etag_that_a_command_takes(client: AsyncClient) -> None:
    placed = (await place(client)).json()
    await with_name(client, placed["id"], 1)
    answer = await client.get(f"/order-views/{placed['id']}")
    paid = await change(client, placed["id"], "pay", answer.headers["etag"])
    assert paid.status_code == 200


async def test_a_version_that_does_not_come_is_said_to_be_late(client: AsyncClient) -> None:
    placed = (await place(client)).json()
    answer = await client.get(f"/order-views/{placed['id']}", params={"min_version": 2})
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_order_that_is_not_there(client: AsyncClient) -> None:
    assert_problem(await client.get(f"/order-views/{2**62}"), 404)


async def test_orders_are_listed_by_customer_page_by_page(client: AsyncClient) -> None:
    user_id, name = await customer(client)
    ids = [(await place(client, user_id)).json()["id"] for _ in range(3)]
    for order_id in ids:
        await with_name(client, order_id, 1)
    parameters: dict[str, Any] = {"customer_name": name, "limit": 2}
    first = (await client.get("/order-views", params=parameters)).json()
    parameters["cursor"] = first["next_cursor"]
    last = (await client.get("/order-views", params=parameters)).json()
    found = [[order["id"] for order in page["items"]] for page in (first, last)]
    assert found == [[ids[2], ids[1]], [ids[0]]]
    assert last["next_cursor"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("user_id", "0"), ("customer_name", "a b"), ("status", "lost"), ("limit", "0")],
)
async def test_a_wrong_filter_is_named(client: AsyncClient, name: str, value: str) -> None:
    answer = await client.get("/order-views", params={name: value})
    assert pointers(assert_problem(answer, 422)) == [f"query /{name}"]


async def today(client: AsyncClient) -> tuple[int, Decimal]:
    day = datetime.now(UTC).date().isoformat()
    answer = await client.get("/sales/daily", params={"first": day})
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["days"] or [{"day": day, "orders": 0, "revenue": "0"}]
    assert found["day"] == day
    return found["orders"], Decimal(found["revenue"])


async def test_what_is_paid_is_in_the_totals_of_the_day(client: AsyncClient) -> None:
    # Other tests pay as well, but nobody else pays prices like this one.
    price = Decimal(7_000_000_000)
    item = {"sku": "yacht", "quantity": 1, "unit_price": str(price)}
    _, before = await today(client)
    placed = (await place(client, items=[item])).json()
    await change(client, placed["id"], "pay", '"1"')
    _, after = await eventually(lambda: today(client), lambda now: now[1] >= before + price)
    assert after < before + 2 * price


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"first": "soon"}, "first"),
        ({"last": "2025-02-30"}, "last"),
        ({"first": "2025-03-02", "last": "2025-03-01"}, "first"),
        ({"first": "2023-03-02", "last": "2025-03-01"}, "first"),
        ({"first": "9999-12-31"}, "first"),
    ],
)
async def test_a_range_that_makes_no_sense_is_refused(
    client: AsyncClient, parameters: dict[str, str], field: str
) -> None:
    answer = await client.get("/sales/daily", params=parameters)
    assert pointers(assert_problem(answer, 422)) == [f"query /{field}"]


async def test_the_first_days_there_are_can_be_asked_for(client: AsyncClient) -> None:
    answer = await client.get("/sales/daily", params={"last": "0001-01-02"})
    assert answer.json() == {"days": []}
