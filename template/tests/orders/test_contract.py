import asyncio
from decimal import Decimal
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from app.orders.service import OrderReadSettings
from tests.api import assert_problem, pointers, unique
from tests.fixtures import eventually
from tests.orders.api import change, new_order, place, sign_up

ITEMS = [
    {"sku": "tea-250g", "quantity": 2, "unit_price": "3.50"},
    {"sku": "cup", "quantity": 1, "unit_price": "12.00"},
]


async def get_at(client: AsyncClient, order_id: int, version: int) -> Response:
    """Reads what was written, however late the read side is."""

    async def read() -> Response:
        return await client.get(f"/orders/{order_id}", params={"min_version": version})

    return await eventually(read, lambda answer: answer.status_code == 200)


# Placing


async def test_an_order_is_placed(client: AsyncClient) -> None:
    user_id = await sign_up(client)
    answer = await client.post("/orders", json={"user_id": user_id, "items": ITEMS})
    assert answer.status_code == 201
    order = answer.json()
    assert order == {
        "id": order["id"],
        "user_id": user_id,
        "items": ITEMS,
        "total": "19.00",
        "status": "placed",
        "version": 1,
    }
    assert answer.headers["location"] == f"/orders/{order['id']}"
    assert answer.headers["etag"] == '"1"'


@pytest.mark.parametrize(
    ("given", "kept"),
    [("0.1", "0.10"), (0.1, "0.10"), (3, "3.00"), ("1E+2", "100.00"), ("-0", "0.00")],
)
async def test_money_is_exact_and_has_two_places(
    client: AsyncClient, given: object, kept: str
) -> None:
    item = {"sku": "tea", "quantity": 3, "unit_price": given}
    answer = await place(client, items=[item])
    assert answer.json()["items"][0]["unit_price"] == kept
    assert Decimal(answer.json()["total"]) == 3 * Decimal(kept)
    assert (await get_at(client, answer.json()["id"], 1)).json() == answer.json()


async def test_the_largest_order_is_exact(client: AsyncClient) -> None:
    item = {"sku": "gold", "quantity": 1_000_000, "unit_price": "9999999999.99"}
    answer = await place(client, items=[item] * 100)
    assert answer.json()["total"] == "999999999999000000.00"
    assert (await get_at(client, answer.json()["id"], 1)).json() == answer.json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sku", "nul\0"),
        ("sku", ""),
        ("sku", "s" * 65),
        ("quantity", 0),
        ("quantity", 10**30),
        ("quantity", 1.5),
        ("quantity", "1"),
        ("quantity", True),
        ("unit_price", "1_000"),
        ("unit_price", "١٢"),
        ("unit_price", " 1"),
        ("unit_price", True),
        ("unit_price", "-0.01"),
        ("unit_price", "0.001"),
        ("unit_price", "1E+20"),
        ("unit_price", "1E-999999999"),
        ("unit_price", "1E+999999999"),
        ("unit_price", "NaN"),
        ("unit_price", "Infinity"),
        ("unit_price", "free"),
        ("discount", "1.00"),
    ],
)
async def test_a_wrong_field_of_an_item_is_named(
    client: AsyncClient, field: str, value: object
) -> None:
    item = {"sku": "tea", "quantity": 1, "unit_price": "1.00"} | {field: value}
    order = new_order(await sign_up(client), items=[item])
    answer = await client.post("/orders", json=order)
    assert pointers(assert_problem(answer, 422)) == [f"body /items/0/{field}"]


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity", "1" * 5_000])
async def test_a_number_beyond_reason_is_refused(client: AsyncClient, number: str) -> None:
    body = f'{{"user_id": 1, "items": [{{"sku": "a", "quantity": 1, "unit_price": {number}}}]}}'
    answer = await client.post(
        "/orders", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code)


@pytest.mark.parametrize("user_id", [2**62, 2**63, 0, -1, "ada", None])
async def test_an_unknown_user_is_a_wrong_field(client: AsyncClient, user_id: Any) -> None:
    answer = await client.post("/orders", json=new_order(user_id))
    assert pointers(assert_problem(answer, 422)) == ["body /user_id"]


@pytest.mark.parametrize("items", [[], None, [None], "tea"])
async def test_an_order_needs_items(client: AsyncClient, items: object) -> None:
    order = new_order(await sign_up(client), items=items)
    assert_problem(await client.post("/orders", json=order), 422)


# Idempotency-Key


async def post_with_key(client: AsyncClient, order: dict[str, Any], key: str) -> Response:
    return await client.post("/orders", json=order, headers={"Idempotency-Key": key})


async def test_the_same_key_and_body_get_the_same_answer(client: AsyncClient) -> None:
    key, order = unique("key"), new_order(await sign_up(client))
    first = await post_with_key(client, order, key)
    again = await post_with_key(client, order, key)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    for header in ("location", "etag", "content-type"):
        assert first.headers[header] == again.headers[header]


async def test_the_answer_stays_the_same_when_the_order_went_on(client: AsyncClient) -> None:
    key, order = unique("key"), new_order(await sign_up(client))
    first = await post_with_key(client, order, key)
    await change(client, first.json()["id"], "pay", first.headers["etag"])
    assert (await post_with_key(client, order, key)).content == first.content


async def test_a_repeated_request_orders_once(client: AsyncClient) -> None:
    key, order = unique("key"), new_order(await sign_up(client))
    answers = await asyncio.gather(*(post_with_key(client, order, key) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    await get_at(client, answers[0].json()["id"], 1)
    page = await client.get("/orders", params={"user_id": order["user_id"]})
    assert len(page.json()["items"]) == 1


async def test_the_same_key_with_another_body_is_refused(client: AsyncClient) -> None:
    key, user_id = unique("key"), await sign_up(client)
    await post_with_key(client, new_order(user_id), key)
    answer = await post_with_key(client, new_order(user_id), key)
    assert pointers(assert_problem(answer, 422)) == ["header /Idempotency-Key"]


async def test_a_key_whose_request_failed_is_free_again(client: AsyncClient) -> None:
    key, order = unique("key"), new_order(2**62)
    assert_problem(await post_with_key(client, order, key), 422)
    answer = await post_with_key(client, order | {"user_id": await sign_up(client)}, key)
    assert answer.status_code == 201


@pytest.mark.parametrize("key", ["", "k" * 256, "two words"])
async def test_an_invalid_idempotency_key_is_refused(client: AsyncClient, key: str) -> None:
    answer = await post_with_key(client, new_order(1), key)
    assert pointers(assert_problem(answer, 422)) == ["header /Idempotency-Key"]


# Paying and cancelling


@pytest.mark.parametrize(("action", "status"), [("pay", "paid"), ("cancel", "cancelled")])
async def test_an_order_goes_on(client: AsyncClient, action: str, status: str) -> None:
    placed = await place(client)
    answer = await change(client, placed.json()["id"], action, placed.headers["etag"])
    assert answer.status_code == 200
    assert answer.json() == placed.json() | {"status": status, "version": 2}
    assert answer.headers["etag"] == '"2"'
    assert (await get_at(client, placed.json()["id"], 2)).json() == answer.json()


@pytest.mark.parametrize("action", ["pay", "cancel"])
async def test_the_version_must_be_named(client: AsyncClient, action: str) -> None:
    placed = await place(client)
    assert_problem(await client.post(f"/orders/{placed.json()['id']}/{action}"), 428)


@pytest.mark.parametrize("action", ["pay", "cancel"])
@pytest.mark.parametrize("if_match", ['"2"', 'W/"1"', "1", '"1', '""', '"x"', f'"{"9" * 5_000}"'])
async def test_another_version_is_stale(client: AsyncClient, action: str, if_match: str) -> None:
    placed = await place(client)
    assert_problem(await change(client, placed.json()["id"], action, if_match), 412)


@pytest.mark.parametrize("if_match", ["*", '"7", "1"', ' "1" '])
async def test_a_precondition_may_allow_more(client: AsyncClient, if_match: str) -> None:
    placed = await place(client)
    assert (await change(client, placed.json()["id"], "pay", if_match)).status_code == 200


async def test_a_precondition_may_have_several_lines(client: AsyncClient) -> None:
    placed = await place(client)
    lines = [("If-Match", '"7"'), ("If-Match", '"1"')]
    answer = await client.post(f"/orders/{placed.json()['id']}/pay", headers=lines)
    assert answer.status_code == 200


async def test_a_settled_order_refuses_further_commands(client: AsyncClient) -> None:
    placed = await place(client)
    order_id = placed.json()["id"]
    paid = await change(client, order_id, "pay", placed.headers["etag"])
    answer = await change(client, order_id, "cancel", paid.headers["etag"])
    assert "is paid" in assert_problem(answer, 409)["detail"]


async def test_of_changes_at_once_to_one_version_a_single_one_wins(client: AsyncClient) -> None:
    placed = await place(client)
    order_id = placed.json()["id"]
    answers = await asyncio.gather(
        *(change(client, order_id, action, '"1"') for action in ("pay", "cancel") * 3)
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[412] * 5]
    (winner,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert (await get_at(client, order_id, 2)).json() == winner


async def test_of_changes_at_once_to_any_version_a_single_one_wins(client: AsyncClient) -> None:
    """The others are decided again, on the order as it is by then, which no longer allows them."""
    placed = await place(client)
    order_id = placed.json()["id"]
    answers = await asyncio.gather(
        *(change(client, order_id, action, "*") for action in ("pay", "cancel") * 3)
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]


@pytest.mark.parametrize("action", ["pay", "cancel"])
async def test_an_order_that_is_not_there_cannot_change(client: AsyncClient, action: str) -> None:
    assert_problem(await change(client, 2**62, action, '"1"'), 404)


# Reading


async def test_an_order_is_read_with_its_etag(client: AsyncClient) -> None:
    placed = await place(client)
    answer = await get_at(client, placed.json()["id"], 1)
    assert answer.json() == placed.json()
    assert answer.headers["etag"] == placed.headers["etag"]


async def test_an_order_that_is_not_there(client: AsyncClient) -> None:
    assert_problem(await client.get(f"/orders/{2**62}"), 404)


@pytest.mark.parametrize("order_id", ["first", str(2**63), "9" * 5_000, "%00"])
async def test_an_invalid_order_id_is_refused(client: AsyncClient, order_id: str) -> None:
    assert_problem(await client.get(f"/orders/{order_id}"), 422)


async def test_a_version_that_does_not_come_is_said_to_be_late(
    client: AsyncClient, live_app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = OrderReadSettings(orders_min_version_wait_seconds=0.2)
    monkeypatch.setitem(live_app.state.runtime.settings, OrderReadSettings, quick)
    placed = await place(client)
    answer = await client.get(f"/orders/{placed.json()['id']}", params={"min_version": 2})
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_reader_waits_for_the_version_it_knows(client: AsyncClient) -> None:
    placed = await place(client)
    order_id = placed.json()["id"]
    reading = asyncio.create_task(get_at(client, order_id, 2))
    await asyncio.sleep(0.1)
    assert not reading.done()
    await change(client, order_id, "pay", '"1"')
    assert (await reading).json()["status"] == "paid"


@pytest.mark.parametrize("min_version", ["0", "-1", "two", str(2**70)])
async def test_an_invalid_version_is_refused(client: AsyncClient, min_version: str) -> None:
    answer = await client.get("/orders/1", params={"min_version": min_version})
    assert pointers(assert_problem(answer, 422)) == ["query /min_version"]


# Listing


async def place_many(client: AsyncClient, number: int) -> tuple[int, list[int]]:
    """A user with `number` orders, and their ids, newest first; all of them can be read."""
    user_id = await sign_up(client)
    ids = [(await place(client, user_id)).json()["id"] for _ in range(number)]
    for order_id in ids:
        await get_at(client, order_id, 1)
    return user_id, ids[::-1]


async def pages(client: AsyncClient, **parameters: Any) -> list[list[int]]:
    found = []
    while True:
        answer = await client.get("/orders", params=parameters)
        assert answer.status_code == 200, answer.text
        found.append([order["id"] for order in answer.json()["items"]])
        if answer.json()["next_cursor"] is None:
            return found
        parameters["cursor"] = answer.json()["next_cursor"]


async def test_orders_come_newest_first_page_by_page(client: AsyncClient) -> None:
    user_id, ids = await place_many(client, 5)
    assert await pages(client, user_id=user_id, limit=2) == [ids[:2], ids[2:4], ids[4:]]


async def test_a_full_last_page_has_no_next(client: AsyncClient) -> None:
    user_id, ids = await place_many(client, 4)
    assert await pages(client, user_id=user_id, limit=2) == [ids[:2], ids[2:]]


async def test_pages_stay_in_place_while_orders_come_in(client: AsyncClient) -> None:
    user_id, ids = await place_many(client, 4)
    first = (await client.get("/orders", params={"user_id": user_id, "limit": 2})).json()
    late = await place(client, user_id)
    await get_at(client, late.json()["id"], 1)
    rest = await pages(client, user_id=user_id, limit=2, cursor=first["next_cursor"])
    assert rest == [ids[2:]]


async def test_a_listed_order_is_as_it_was_placed(client: AsyncClient) -> None:
    placed = (await place(client, items=ITEMS)).json()
    await get_at(client, placed["id"], 1)
    answer = await client.get("/orders", params={"user_id": placed["user_id"]})
    assert answer.json() == {"items": [placed], "next_cursor": None}


async def test_orders_are_filtered_by_status(client: AsyncClient) -> None:
    user_id, ids = await place_many(client, 3)
    await change(client, ids[1], "pay", '"1"')
    await get_at(client, ids[1], 2)
    assert await pages(client, user_id=user_id, status="paid") == [[ids[1]]]
    assert await pages(client, user_id=user_id, status="placed") == [[ids[0], ids[2]]]
    assert await pages(client, user_id=user_id, status="cancelled") == [[]]


async def test_all_orders_are_listed_without_a_filter(client: AsyncClient) -> None:
    placed = await place(client)
    await get_at(client, placed.json()["id"], 1)
    answer = await client.get("/orders", params={"limit": 100})
    assert placed.json()["id"] in [order["id"] for order in answer.json()["items"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_id", "ada"),
        ("user_id", str(2**63)),
        ("status", "lost"),
        ("cursor", "made-up"),
        ("cursor", ""),
        ("cursor", "\0"),
        ("cursor", "aWQ6LTE"),
        ("cursor", "é"),
        ("cursor", "9" * 20_000),
        ("limit", "0"),
        ("limit", "101"),
    ],
)
async def test_a_wrong_parameter_is_named(client: AsyncClient, name: str, value: str) -> None:
    answer = await client.get("/orders", params={name: value})
    assert pointers(assert_problem(answer, 422)) == [f"query /{name}"]
    assert "Value error" not in answer.text


@pytest.mark.parametrize("user_id", [True, "1", 1.5])
async def test_an_id_in_a_body_is_a_number(client: AsyncClient, user_id: object) -> None:
    answer = await client.post("/orders", json=new_order(1) | {"user_id": user_id})
    assert pointers(assert_problem(answer, 422)) == ["body /user_id"]


@pytest.mark.parametrize("limit", ["1_0", "+1", " 1", "١٢"])
async def test_a_number_in_a_query_is_digits(client: AsyncClient, limit: str) -> None:
    answer = await client.get("/orders", params={"limit": limit})
    assert pointers(assert_problem(answer, 422)) == ["query /limit"]


@pytest.mark.parametrize("action", ["pay", "cancel"])
async def test_a_repeated_command_gets_the_same_answer(client: AsyncClient, action: str) -> None:
    order = (await place(client)).json()
    headers = {"If-Match": '"1"', "Idempotency-Key": unique("key")}
    answers = [
        await client.post(f"/orders/{order['id']}/{action}", headers=headers) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].headers["etag"] == answers[1].headers["etag"] == '"2"'


async def test_an_order_answers_to_head(client: AsyncClient) -> None:
    order = (await place(client)).json()
    answer = await client.head(f"/orders/{order['id']}", params={"min_version": 1})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] == '"1"'


async def test_allow_names_all_methods_of_a_path(client: AsyncClient) -> None:
    answer = await client.delete("/orders")
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "HEAD, GET, POST"


async def test_orders_reserve_inventory(client: AsyncClient) -> None:
    tea, cup = unique("tea"), unique("cup")
    user_id = await sign_up(client)
    await place(client, user_id, items=[item(tea, 2), item(cup, 1), item(tea, 5)])
    await place(client, user_id, items=[item(cup, 3)])

    async def reserved() -> tuple[int, int]:
        answers = [await client.get(f"/inventory/{sku}") for sku in (tea, cup)]
        return answers[0].json()["reserved"], answers[1].json()["reserved"]

    assert await eventually(reserved, lambda found: found >= (7, 4)) == (7, 4)


async def test_of_a_sku_that_nobody_ordered_nothing_is_reserved(client: AsyncClient) -> None:
    sku = unique("sku")
    answer = await client.get(f"/inventory/{sku}")
    assert answer.status_code == 200
    assert answer.json() == {"sku": sku, "reserved": 0}


@pytest.mark.parametrize("sku", ["%00", "two%20words", "s" * 65])
async def test_an_invalid_sku_is_refused(client: AsyncClient, sku: str) -> None:
    assert_problem(await client.get(f"/inventory/{sku}"), 422)


def item(sku: str, quantity: int) -> dict[str, object]:
    return {"sku": sku, "quantity": quantity, "unit_price": "1.00"}
