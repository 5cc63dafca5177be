"""Heartbeats, all the way: HTTP in, the event out, its consumer, the count; and when it goes wrong."""

import asyncio
import re
import secrets
from typing import Any

import pytest
from httpx import AsyncClient, Response
from sqlalchemy import func, select
from structlog.testing import capture_logs

from app.heartbeats.events import HeartbeatSent
from app.heartbeats.handlers import count_heartbeats
from app.heartbeats.repository import Heartbeat, HeartbeatCountRepository
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWorkFactory
from tests.fixtures import eventually
from tests.world import Api, NoPublisher, failing_commit, failing_insert, serving

PROBLEM = "application/problem+json"
INTERNAL_ERROR, SHUTTING_DOWN = "XX000", "57P01"


def unique_source() -> str:
    return f"door-{secrets.token_hex(6)}"  # not `random`, which a test runner may seed


async def send(http: AsyncClient, source: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post("/heartbeats", json={"source": source}, headers=named)


async def count(http: AsyncClient, source: str) -> int:
    answer = await http.get(f"/heartbeats/{source}")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["heartbeats"])


def assert_problem(answer: Response, status: int) -> dict[str, Any]:
    """The body of an answer that tells a problem as RFC 9457 wants it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["instance"] == answer.request.url.raw_path.decode().split("?")[0]
    return problem


# The whole service


async def test_a_heartbeat_is_sent(client: AsyncClient) -> None:
    source = unique_source()
    answer = await send(client, source)
    assert answer.status_code == 201
    assert answer.json()["source"] == source
    assert answer.headers["location"] == f"/heartbeats/{source}"


async def test_each_heartbeat_is_counted_once_by_its_consumer(client: AsyncClient) -> None:
    source = unique_source()
    for _ in range(3):
        await send(client, source)
    await eventually(lambda: count(client, source), lambda counted: counted >= 3)
    await asyncio.sleep(0.2)  # room for a second application, if there were one
    assert await count(client, source) == 3


async def test_a_source_of_which_nothing_was_heard_has_none(client: AsyncClient) -> None:
    assert await count(client, unique_source()) == 0


@pytest.mark.parametrize("source", ["", " ", "-door", "a b", "a/b", "d" * 65, "dö", "\0", 7, None])
async def test_a_source_that_is_no_name_is_refused(client: AsyncClient, source: object) -> None:
    answer = await client.post("/heartbeats", json={"source": source})
    (field,) = assert_problem(answer, 422)["errors"]
    assert (field["location"], field["pointer"]) == ("body", "/source")


async def test_a_field_that_does_not_exist_is_refused(client: AsyncClient) -> None:
    answer = await client.post("/heartbeats", json={"source": "door", "a/~b": 1})
    (field,) = assert_problem(answer, 422)["errors"]
    assert field["pointer"] == "/a~1~0b"


async def test_text_that_is_no_unicode_is_answered(client: AsyncClient) -> None:
    json = {"content-type": "application/json"}
    answer = await client.post("/heartbeats", content=b'{"\\ud800": "\\udfff"}', headers=json)
    assert_problem(answer, 422)
    assert (await client.get("/heartbeats/%ED%A0%80")).status_code == 422


async def test_a_query_parameter_that_does_not_exist_is_refused(client: AsyncClient) -> None:
    (field,) = assert_problem(await client.get("/heartbeats/door?since=1"), 422)["errors"]
    assert (field["location"], field["pointer"]) == ("query", "/since")
    assert field["detail"].startswith("unknown; there are")


async def test_what_is_not_json_is_refused(client: AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl sends
    answer = await client.post("/heartbeats", content=b"{}", headers=form)
    assert "Content-Type: application/json" in assert_problem(answer, 415)["detail"]
    json = {"content-type": "application/json"}
    answer = await client.post("/heartbeats", content=b"{bad", headers=json)
    (field,) = assert_problem(answer, 422)["errors"]
    assert (field["location"], field["pointer"]) == ("body", "")
    assert field["detail"].startswith("not JSON at character 2: ")


async def test_what_is_not_there_is_a_problem(client: AsyncClient) -> None:
    assert_problem(await client.get("/no%20where/%C3%A9"), 404)
    answer = await client.delete("/heartbeats")
    assert_problem(answer, 405)
    assert "POST" in answer.headers["allow"]


async def test_every_operation_documents_itself_and_its_problems(client: AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [
        operation
        for path, methods in document["paths"].items()
        if path.startswith("/heartbeats")
        for operation in methods.values()
    ]
    assert operations
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        assert operation["description"]
        assert {"422", "500", "503"} <= operation["responses"].keys()
        assert ("415" in operation["responses"]) == ("requestBody" in operation)
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == [PROBLEM]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert "Problem" in references
    assert references <= document["components"]["schemas"].keys()


# The API alone, and what it publishes


async def test_a_heartbeat_is_published_under_its_id(api: Api) -> None:
    heartbeat = (await send(api.http, "door")).json()
    (event,) = api.published("heartbeat.sent")
    assert (event["heartbeat_id"], event["source"]) == (heartbeat["id"], "door")
    assert api.producer.sent[0].key == str(heartbeat["id"]).encode()


async def test_a_refused_request_publishes_nothing(api: Api) -> None:
    assert_problem(await send(api.http, "a b"), 422)
    assert api.producer.sent == []


async def test_a_repeated_request_is_one_heartbeat(api: Api, database: Database) -> None:
    first, second = [await send(api.http, "door", Idempotency_Key="once") for _ in range(2)]
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["location"] == first.headers["location"]
    assert len(api.published("heartbeat.sent")) == 1
    assert await stored(database) == 1


async def test_a_key_is_not_used_for_another_request(api: Api) -> None:
    await send(api.http, "door", Idempotency_Key="once")
    answer = await send(api.http, "window", Idempotency_Key="once")
    (field,) = assert_problem(answer, 422)["errors"]
    assert (field["location"], field["pointer"]) == ("header", "/Idempotency-Key")
    assert len(api.published("heartbeat.sent")) == 1


async def stored(database: Database) -> int | None:
    async with database.sessions() as session:
        return await session.scalar(select(func.count()).select_from(Heartbeat))


async def test_a_commit_that_fails_is_no_success(api: Api, database: Database) -> None:
    with capture_logs():
        async with failing_commit(database, "heartbeats", INTERNAL_ERROR):
            assert_problem(await send(api.http, "door"), 500)
    assert await stored(database) == 0
    assert api.producer.sent == []


async def test_a_commit_that_fails_for_now_may_be_repeated(api: Api, database: Database) -> None:
    async with failing_commit(database, "heartbeats", SHUTTING_DOWN):
        answer = await send(api.http, "door", Idempotency_Key="again")
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert api.producer.sent == []
    assert (await send(api.http, "door", Idempotency_Key="again")).status_code == 201


async def test_an_unexpected_error_is_only_logged(api: Api, database: Database) -> None:
    with capture_logs() as logs:
        async with failing_insert(database, "heartbeats", INTERNAL_ERROR):
            answer = await send(api.http, "door")
    assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-correlation-id"]
    (logged,) = (entry for entry in logs if entry["log_level"] == "error")
    assert "a secret of the database" in str(logged["exc_info"])


async def test_without_a_database_the_answer_is_to_come_again() -> None:
    async with serving("postgresql://nobody@127.0.0.1:9/nothing") as api:
        for answer in [await send(api.http, "door"), await api.http.get("/heartbeats/door")]:
            assert_problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1


# The handler


@pytest.fixture
def units(database: Database) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(database.sessions, lambda _session: NoPublisher())


def beats(*sources: str) -> list[HeartbeatSent]:
    return [HeartbeatSent(heartbeat_id=id, source=source) for id, source in enumerate(sources, 1)]


async def test_a_batch_counts_every_heartbeat(units: UnitOfWorkFactory) -> None:
    async with units.begin() as uow:
        await count_heartbeats(beats("door", "window", "door"), uow)
        await count_heartbeats([], uow)
        await count_heartbeats(beats("door"), uow)
        counts = HeartbeatCountRepository(uow.session)
        assert (await counts.get("door"), await counts.get("window")) == (3, 1)


async def test_a_batch_may_have_more_sources_than_arguments(
    units: UnitOfWorkFactory,
) -> None:
    async with units.begin() as uow:
        counts = HeartbeatCountRepository(uow.session)
        await counts.add({f"door-{number}": number for number in range(40_000)})
        assert await counts.get("door-39999") == 39_999


async def test_batches_with_the_same_sources_do_not_deadlock(
    units: UnitOfWorkFactory,
) -> None:
    sources = [f"door-{number}" for number in range(50)]

    async def take(sources: list[str]) -> None:
        async with units.begin() as uow:
            await count_heartbeats(beats(*sources), uow)

    await asyncio.gather(*(take(sources if n % 2 else sources[::-1]) for n in range(8)))
    async with units.begin() as uow:
        assert await HeartbeatCountRepository(uow.session).get("door-0") == 8
