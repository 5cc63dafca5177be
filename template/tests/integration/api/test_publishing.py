"""What each request publishes."""

import pytest

from tests.contract.api import change, new_user, place, sign_up
from tests.integration.api.conftest import Api


async def test_signing_up_publishes_the_user(api: Api) -> None:
    user = new_user(phone="+442079460123")
    created = (await api.http.post("/users", json=user)).json()
    (event,) = api.published("user.created")
    assert event["user_id"] == created["id"]
    assert {name: event[name] for name in user} == user
    assert event["version"] == "2.0.0"
    assert api.producer.sent[0].key == str(created["id"]).encode()


async def test_a_post_is_published_without_its_body(api: Api) -> None:
    author = await sign_up(api.http)
    post = {"author_id": author, "title": "On engines", "body": "They weave."}
    published = (await api.http.post("/posts", json=post)).json()
    (event,) = api.published("post.published")
    assert (event["post_id"], event["author_id"]) == (published["id"], author)
    assert event["title"] == "On engines"
    assert "body" not in event


async def test_placing_publishes_the_whole_order(api: Api) -> None:
    order = (await place(api.http)).json()
    (event,) = api.published("order.created")
    assert event["order_id"] == order["id"]
    assert event["order_version"] == order["version"] == 1
    for name in ("user_id", "items", "total", "status"):
        assert event[name] == order[name]


@pytest.mark.parametrize(("action", "status"), [("pay", "paid"), ("cancel", "cancelled")])
async def test_each_change_publishes_the_whole_order(api: Api, action: str, status: str) -> None:
    placed = (await place(api.http)).json()
    order = (await change(api.http, placed["id"], action, '"1"')).json()
    (event,) = api.published(f"order.{status}")
    assert event["order_id"] == order["id"]
    assert event["order_version"] == order["version"] == 2
    for name in ("user_id", "items", "total", "status"):
        assert event[name] == order[name]


async def test_a_change_that_is_refused_publishes_nothing(api: Api) -> None:
    placed = (await place(api.http)).json()
    for if_match in ('"2"', '"1"', '"2"'):
        await change(api.http, placed["id"], "pay", if_match)
    assert len(api.published("order.paid")) == 1


async def test_the_events_of_one_order_have_one_key(api: Api) -> None:
    placed = (await place(api.http)).json()
    await change(api.http, placed["id"], "pay", '"1"')
    keys = {m.key for m in api.producer.sent if b"order_id" in (m.value or b"")}
    assert keys == {str(placed["id"]).encode()}


async def test_a_repeated_request_publishes_once(api: Api) -> None:
    order = {"user_id": await sign_up(api.http), "items": [ITEM]}
    for _ in range(2):
        await api.http.post("/orders", json=order, headers={"Idempotency-Key": "once"})
    assert len(api.published("order.created")) == 1


ITEM = {"sku": "tea", "quantity": 1, "unit_price": "1.00"}
