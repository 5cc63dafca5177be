"""What a client is told, and what is left behind, when something fails."""

from sqlalchemy import func, select
from structlog.testing import capture_logs

from app.database import Database
from app.models import User
from tests.contract.api import assert_problem, new_user
from tests.integration.api.conftest import Api, failing_commit, failing_insert, serving

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
