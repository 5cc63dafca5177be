"""Requests with one Idempotency-Key that meet while the first is still at work."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import delete, func, select, text, update

from app.database import Database
from app.models import IdempotencyKey
from app.repositories.idempotency import Answer, IdempotencyRepository
from app.services.idempotency import KEEP
from tests.contract.api import assert_problem, new_order, sign_up
from tests.eventually import eventually
from tests.integration.api.conftest import Api

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
