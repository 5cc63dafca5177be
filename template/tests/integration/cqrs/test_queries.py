from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from decimal import Decimal

import pytest
from sqlalchemy import event, text

from app.cqrs.queries import DailySales, OrderDetailFilter, OrderViewQueries, SalesQueries
from app.database import Database
from app.domain.orders import OrderStatus
from app.repositories.orders import OrderFilter

FILL = [
    "INSERT INTO customer_names SELECT n, 'u' || n FROM generate_series(1, 99) AS n",
    "INSERT INTO order_views SELECT n, n % 100,"
    " CASE n % 100 WHEN 0 THEN 'paid' WHEN 1 THEN 'cancelled' ELSE 'placed' END,"
    """ '[{"sku": "tea", "quantity": 2, "unit_price": "3.50"}]', 2, 7, 1, now(), now()"""
    " FROM generate_series(1, 20000) AS n",
    "INSERT INTO daily_sales SELECT date '2020-01-01' + n, n, n FROM generate_series(0, 1999) AS n",
]


@pytest.fixture
async def views(database: Database) -> OrderViewQueries:
    """Twenty thousand orders of a hundred customers, all but one of them known by name."""
    async with database.engine.begin() as connection:
        for statement in FILL:
            await connection.execute(text(statement))
        for table in ("order_views", "customer_names", "daily_sales"):
            await connection.execute(text(f"ANALYZE {table}"))
    return OrderViewQueries(database.sessions)


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


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (OrderDetailFilter(), "pk_order_views"),
        (OrderDetailFilter(user_id=7), "ix_order_views_user_id_order_id"),
        (OrderDetailFilter(customer_name="u7"), "ix_order_views_user_id_order_id"),
        (OrderDetailFilter(status=OrderStatus.PAID), "ix_order_views_status_order_id"),
    ],
)
async def test_a_page_is_read_from_an_index_in_its_order(
    views: OrderViewQueries, database: Database, wanted: OrderDetailFilter, index: str
) -> None:
    async with plans(database) as found:
        page = await views.find(wanted, before=15000, limit=10)
    assert len(page) == 10
    (plan,) = found
    assert index in plan
    assert "Seq Scan on order_views" not in plan
    assert "Sort Key: order_views" not in plan


async def test_a_name_is_found_by_an_index(views: OrderViewQueries, database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO customer_names"
                " SELECT n, 'v' || n FROM generate_series(1000, 6000) AS n"
            )
        )
        await connection.execute(text("ANALYZE customer_names"))
    async with plans(database) as found:
        await views.find(OrderDetailFilter(customer_name="u7"), before=None, limit=10)
    assert "ix_customer_names_username" in found[0]


async def test_one_order_is_read_by_its_key(views: OrderViewQueries, database: Database) -> None:
    async with plans(database) as found:
        await views.get(7)
    assert "pk_order_views" in found[0]
    assert "Seq Scan on order_views" not in found[0]


async def test_days_are_read_by_their_key(views: OrderViewQueries, database: Database) -> None:
    async with plans(database) as found:
        await SalesQueries(database.sessions).daily(date(2020, 3, 1), date(2020, 3, 31))
    assert "pk_daily_sales" in found[0]
    assert "Seq Scan" not in found[0]


async def test_pages_are_those_of_the_write_side(views: OrderViewQueries) -> None:
    page = await views.page(OrderFilter(user_id=7, status=None), before=None, limit=3)
    assert [order.id for order in page] == [19907, 19807, 19707]
    page = await views.page(OrderFilter(status=OrderStatus.PAID), before=19980, limit=2)
    assert [order.id for order in page] == [19900, 19800]


async def test_filters_are_combined(views: OrderViewQueries) -> None:
    wanted = OrderDetailFilter(status=OrderStatus.CANCELLED, customer_name="u1")
    assert [order.id for order in await views.find(wanted, None, 2)] == [19901, 19801]
    wanted = OrderDetailFilter(user_id=2, customer_name="u1")
    assert await views.find(wanted, None, 2) == []


async def test_a_name_that_nobody_has_finds_nothing(views: OrderViewQueries) -> None:
    assert await views.find(OrderDetailFilter(customer_name="nobody"), None, 10) == []


async def test_an_order_without_a_known_customer_is_there_all_the_same(
    views: OrderViewQueries,
) -> None:
    found = await views.get(100)
    assert found is not None
    assert (found.user_id, found.customer_name) == (0, None)


async def test_days_without_a_sale_are_left_out(
    views: OrderViewQueries, database: Database
) -> None:
    sales = SalesQueries(database.sessions)
    days = await sales.daily(date(2019, 12, 1), date(2020, 1, 3))
    assert days == [
        DailySales(date(2020, 1, 2), 1, Decimal(1)),
        DailySales(date(2020, 1, 3), 2, Decimal(2)),
    ]
