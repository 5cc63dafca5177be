"""The HTTP API on a real database: what it publishes, idempotency keys, and a database that fails."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import delete, func, select, text, update
from structlog.testing import capture_logs

from app.database import Database
from app.idempotency import KEEP, Answer, IdempotencyKey, IdempotencyRepository
from app.models import User
from tests.contract.api import assert_problem, change, new_order, new_user, place, sign_up
from tests.eventually import eventually
from tests.integration.conftest import Api, failing_commit, failing_insert, serving


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


SCOPE, KEY = "POST /orders", "the-key"


async def post(api: Api, order: dict[str, Any]) -> Response:
    return await api.http.post("/orders", json=order, headers={"Idempotency-Key": KEY})


@pytest.fixture
async def order(api: Api) -> dict[str, Any]:
    return new_order(await sign_up(api.http))


async def is_waiting(database: Database) -> bool:
    """Whether some transaction waits for another's key."""
    async with database.sessions() as session:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO idempotency_keys%'"
        )
        return bool(await session.scalar(waiting))


async def test_the_second_waits_and_gets_the_answer_of_the_first(
    api: Api, database: Database, order: dict[str, Any]
) -> None:
    fingerprint = (await first_fingerprint(api, database, order)) or b""
    async with database.sessions() as session:
        keys = IdempotencyRepository(session)
        await keys.claim(SCOPE, KEY, fingerprint)
        second = asyncio.create_task(post(api, order))
        await eventually(lambda: is_waiting(database))
        await keys.complete(SCOPE, KEY, Answer(201, {"Location": "/orders/77"}, b'{"id":77}'))
        await session.commit()
    answer = await second
    assert answer.status_code == 201
    assert answer.headers["location"] == "/orders/77"
    assert answer.json() == {"id": 77}


async def test_the_second_does_the_work_when_the_first_gave_up(
    api: Api, database: Database, order: dict[str, Any]
) -> None:
    async with database.sessions() as session:
        await IdempotencyRepository(session).claim(SCOPE, KEY, b"whatever")
        second = asyncio.create_task(post(api, order))
        await eventually(lambda: is_waiting(database))
        await session.rollback()
    assert (await second).status_code == 201


async def test_the_key_of_another_route_is_another_key(
    api: Api, database: Database, order: dict[str, Any]
) -> None:
    async with database.sessions() as session:
        await IdempotencyRepository(session).claim("POST /elsewhere", KEY, b"whatever")
        await session.commit()
    assert (await post(api, order)).status_code == 201


async def test_a_failed_request_leaves_no_key(
    api: Api, database: Database, order: dict[str, Any]
) -> None:
    assert_problem(await post(api, order | {"user_id": 2**62}), 422)
    async with database.sessions() as session:
        assert await session.scalar(select(func.count()).select_from(IdempotencyKey)) == 0


async def test_old_keys_go_when_new_ones_come(
    api: Api, database: Database, order: dict[str, Any]
) -> None:
    async with database.sessions() as session:
        for key, age in [
            ("kept", KEEP - timedelta(minutes=1)),
            ("old", KEEP + timedelta(minutes=1)),
        ]:
            await IdempotencyRepository(session).claim(SCOPE, key, b"whatever")
            aged = update(IdempotencyKey).where(IdempotencyKey.key == key)
            await session.execute(aged.values(created_at=func.now() - age))
        await session.commit()
    await post(api, order)
    async with database.sessions() as session:
        keys = await session.scalars(select(IdempotencyKey.key))
        assert set(keys) == {"kept", KEY}


async def first_fingerprint(api: Api, database: Database, order: dict[str, Any]) -> bytes | None:
    """The fingerprint that the API gives to `order`; its key is free again afterwards."""
    await post(api, order)
    async with database.sessions() as session:
        fingerprint = await session.scalar(select(IdempotencyKey.fingerprint))
        await session.execute(delete(IdempotencyKey))
        await session.commit()
    return fingerprint


INTERNAL_ERROR = "XX000"
SHUTTING_DOWN = "57P01"


async def users(database: Database) -> int | None:
    async with database.sessions() as session:
        return await session.scalar(select(func.count()).select_from(User))


async def test_a_commit_that_fails_is_no_success(api: Api, database: Database) -> None:
    with capture_logs():
        async with failing_commit(database, INTERNAL_ERROR):
            answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 500)
    assert await users(database) == 0
    assert api.producer.sent == []


async def test_a_commit_that_the_database_cannot_do_now_may_be_repeated(
    api: Api, database: Database
) -> None:
    async with failing_commit(database, SHUTTING_DOWN):
        answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert api.producer.sent == []


async def test_an_unexpected_error_is_told_to_the_log_only(api: Api, database: Database) -> None:
    with capture_logs() as logs:
        async with failing_insert(database, INTERNAL_ERROR):
            answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-correlation-id"]
    (told,) = (entry for entry in logs if entry["log_level"] == "error")
    assert "a secret of the database" in str(told["exc_info"])


async def test_without_a_database_the_answer_is_to_come_again() -> None:
    async with serving("postgresql://nobody@127.0.0.1:9/nothing") as api:
        for answer in [
            await api.http.post("/users", json=new_user()),
            await api.http.get("/users/1"),
            await api.http.get("/orders"),
            await api.http.get("/orders/1?min_version=1"),
            await api.http.get("/inventory/tea"),
        ]:
            assert_problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_refused_request_publishes_nothing(api: Api) -> None:
    user = new_user()
    await api.http.post("/users", json=user)
    await api.http.post("/users", json=user)
    assert len(api.producer.sent) == 1
