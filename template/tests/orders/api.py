"""Requests of the example and plans of its queries, for the tests of its slices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from httpx import AsyncClient, Response
from sqlalchemy import event

from app.platform.database.engine import Database
from tests.api import unique


def new_user(**changes: Any) -> dict[str, Any]:
    name = unique("user")
    return {"email": f"{name}@example.com", "username": name} | changes


def new_order(user_id: int, **changes: Any) -> dict[str, Any]:
    item = {"sku": unique("sku"), "quantity": 2, "unit_price": "3.50"}
    return {"user_id": user_id, "items": [item]} | changes


async def sign_up(client: AsyncClient) -> int:
    answer = await client.post("/users", json=new_user())
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def place(client: AsyncClient, user_id: int | None = None, **changes: Any) -> Response:
    order = new_order(user_id or await sign_up(client), **changes)
    answer = await client.post("/orders", json=order)
    assert answer.status_code == 201, answer.text
    return answer


async def change(client: AsyncClient, order_id: int, action: str, if_match: str) -> Response:
    return await client.post(f"/orders/{order_id}/{action}", headers={"If-Match": if_match})


@asynccontextmanager
async def plans(database: Database) -> AsyncIterator[list[str]]:
    """The plans of the statements that the block executes, there at its end."""
    statements: list[tuple[str, tuple[object, ...]]] = []

    def remember(
        _connection: object,
        _cursor: object,
        statement: str,
        parameters: tuple[object, ...],
        *_: object,
    ) -> None:
        statements.append((statement, parameters))

    found: list[str] = []
    event.listen(database.engine.sync_engine, "before_cursor_execute", remember)
    try:
        yield found
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", remember)
    async with database.engine.connect() as connection:
        for statement, parameters in statements:
            plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            found.append("\n".join(line for (line,) in plan))
