import pytest
from sqlalchemy import event, text

from app.database import Database
from app.domain.orders import OrderStatus
from app.models import OrderRow, User
from app.repositories.orders import OrderFilter, SqlOrderQueries


@pytest.fixture
async def orders(database: Database) -> SqlOrderQueries:
    """A thousand orders of a hundred users, with statistics."""
    async with database.sessions() as session, session.begin():
        session.add_all(User(id=n, email=f"{n}@example.com", username=f"u{n}") for n in range(100))
        await session.flush()
        session.add_all(
            OrderRow(
                id=n, user_id=n % 100, status=OrderStatus(STATUSES[n % 20]), total=1, version=1
            )
            for n in range(1, 2001)
        )
    async with database.engine.begin() as connection:
        await connection.execute(text("ANALYZE orders"))
    return SqlOrderQueries(database.sessions)


STATUSES = ["paid", "cancelled"] + ["placed"] * 18


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (OrderFilter(), "pk_orders"),
        (OrderFilter(user_id=7), "ix_orders_user_id_id"),
        (OrderFilter(status=OrderStatus.PAID), "ix_orders_status_id"),
    ],
)
async def test_a_page_is_read_from_an_index(
    orders: SqlOrderQueries, database: Database, wanted: OrderFilter, index: str
) -> None:
    statements: list[tuple[str, tuple[object, ...]]] = []

    def remember(
        _connection: object,
        _cursor: object,
        statement: str,
        parameters: tuple[object, ...],
        *_: object,
    ) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine.sync_engine, "before_cursor_execute", remember)
    page = await orders.page(wanted, before=1500, limit=10)
    event.remove(database.engine.sync_engine, "before_cursor_execute", remember)
    assert len(page) == 10
    statement, parameters = statements[0]
    async with database.engine.connect() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        lines = "\n".join(line for (line,) in plan)
    assert index in lines
    assert "Seq Scan" not in lines
