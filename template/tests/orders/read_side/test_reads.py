"""Reads of the read side, how far it is behind, and the commands."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NodeNotReadyError,
)
from httpx import AsyncClient
from prometheus_client import REGISTRY
from sqlalchemy import text
from typer.testing import Result

from app import wiring
from app.orders import projections
from app.orders.domain import OrderStatus
from app.orders.projections import SUBSCRIPTIONS
from app.orders.repository import OrderFilter
from app.orders.view_queries import DailySales, OrderDetailFilter, OrderViewQueries, SalesQueries
from app.orders.views import ORDER_ROWS
from app.platform.database.engine import Database
from app.platform.events.event import EventRegistry
from app.platform.health import Health, Unhealthy
from app.platform.kafka.admin import TopicAdmin, provision
from app.platform.kafka.codec import encode
from app.platform.kafka.consumers import consuming
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings, client_options
from app.platform.kafka.topics import required_topics
from app.platform.projections.lag import Lag, Monitor, ProjectionSettings, measure
from app.platform.service import Service
from app.platform.tracing import Trace
from tests.api import assert_problem, pointers
from tests.fixtures import eventually, settings_for
from tests.orders.api import change, new_user, place, plans
from tests.orders.read_side.conftest import Shop
from tests.world import run_cli

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


async def sold(client: AsyncClient) -> tuple[int, Decimal]:
    """Of today, and of the day before: a test may have begun then."""
    first = datetime.now(UTC).date() - timedelta(days=1)
    answer = await client.get("/sales/daily", params={"first": first.isoformat()})
    assert answer.status_code == 200, answer.text
    days = answer.json()["days"]
    assert all(date.fromisoformat(day["day"]) >= first for day in days)
    revenue = sum((Decimal(day["revenue"]) for day in days), Decimal(0))
    return sum(day["orders"] for day in days), revenue


async def test_paid_orders_are_in_the_totals_of_the_day(client: AsyncClient) -> None:
    # Other tests pay as well, but nobody else pays prices like this one.
    price = Decimal(7_000_000_000)
    item = {"sku": "yacht", "quantity": 1, "unit_price": str(price)}
    _, before = await sold(client)
    placed = (await place(client, items=[item])).json()
    await change(client, placed["id"], "pay", '"1"')
    _, after = await eventually(lambda: sold(client), lambda now: now[1] >= before + price)
    assert after < before + 2 * price


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"first": "soon"}, "first"),
        ({"last": "2025-02-30"}, "last"),
        ({"first": "2025-03-02", "last": "2025-03-01"}, "first"),
        ({"first": "2024-12-31", "last": "2026-01-02"}, "first"),
        ({"first": "9999-12-31"}, "first"),
    ],
)
async def test_a_range_that_makes_no_sense_is_refused(
    client: AsyncClient, parameters: dict[str, str], field: str
) -> None:
    answer = await client.get("/sales/daily", params=parameters)
    assert pointers(assert_problem(answer, 422)) == [f"query /{field}"]


async def test_a_range_may_begin_366_days_before_its_end(client: AsyncClient) -> None:
    year = {"first": "1925-01-01", "last": "1926-01-02"}
    answer = await client.get("/sales/daily", params=year)
    assert answer.json() == {"days": []}


async def test_the_first_days_there_are_can_be_asked_for(client: AsyncClient) -> None:
    answer = await client.get("/sales/daily", params={"last": "0001-01-02"})
    assert answer.json() == {"days": []}


NAMES = {subscription.name for subscription in SUBSCRIPTIONS}


@pytest.fixture
async def registry(kafka_settings: KafkaSettings) -> EventRegistry:
    registry = EventRegistry(kafka_settings.kafka_client_id, wiring.service.events)
    await provision(kafka_settings, required_topics(kafka_settings, registry, SUBSCRIPTIONS))
    return registry


def monitor(kafka: KafkaSettings, registry: EventRegistry, seconds: float | None) -> Monitor:
    settings = ProjectionSettings(projections_max_lag_seconds=seconds, _env_file=None)
    return Monitor(kafka, registry, SUBSCRIPTIONS, settings)


async def test_lag_grows_until_the_projectors_run(
    shop: Shop,
    database: Database,
    kafka_settings: KafkaSettings,
    registry: EventRegistry,
    producer: KafkaProducer,
) -> None:
    assert await measure(kafka_settings, registry, SUBSCRIPTIONS) == dict.fromkeys(NAMES, Lag())

    order_id = await shop.place(await shop.sign_up("ada"))
    await shop.pay(order_id)
    messages = [encode(event, registry, Trace("story")) for event in shop.events]
    assert await producer.send_all(messages) == [None] * 3
    await asyncio.sleep(1)
    behind = await measure(kafka_settings, registry, SUBSCRIPTIONS)
    assert {name: lag.events for name, lag in behind.items()} == {
        "order-views": 2,
        "daily-sales": 2,
        "customer-names": 1,
    }
    assert all(1 <= lag.seconds < 60 for lag in behind.values())

    await shop_projects(shop, kafka_settings, registry, producer)
    assert (await shop.content())["order_views"][0][0] == order_id


async def shop_projects(
    shop: Shop, settings: KafkaSettings, registry: EventRegistry, producer: KafkaProducer
) -> None:
    """The projectors run until they have caught up."""
    async with consuming(SUBSCRIPTIONS, registry, settings, shop.units, producer, Health()):
        await eventually(
            lambda: measure(settings, registry, SUBSCRIPTIONS),
            lambda lags: lags == dict.fromkeys(NAMES, Lag()),
            seconds=30,
        )


async def test_a_transaction_marker_is_no_lag(
    kafka_settings: KafkaSettings, registry: EventRegistry, real_kafka: str
) -> None:
    topic = SUBSCRIPTIONS[0].topics(registry)[0]
    neighbour = AIOKafkaProducer(**client_options(kafka_settings), transactional_id=topic)
    await neighbour.start()
    try:
        await neighbour.begin_transaction()
        await neighbour.send_and_wait(topic, b"aborted")
        await neighbour.abort_transaction()
    finally:
        await neighbour.stop()
    strict = monitor(kafka_settings, registry, 0.001)
    await strict.measure_once()

    await strict.ready()
    assert strict.latest == dict.fromkeys(NAMES, Lag())


async def test_readiness_depends_on_lag_only_where_it_is_asked_for(
    shop: Shop, kafka_settings: KafkaSettings, registry: EventRegistry, producer: KafkaProducer
) -> None:
    strict, patient, careless = (
        monitor(kafka_settings, registry, seconds) for seconds in (0.5, 600.0, None)
    )
    with pytest.raises(Unhealthy, match="not measured yet"):
        await strict.ready()
    await shop.sign_up("ada")
    await producer.send_all([encode(event, registry, Trace("story")) for event in shop.events])
    await asyncio.sleep(1)
    for each in (strict, patient, careless):
        await each.measure_once()
    with pytest.raises(Unhealthy, match=r"customer-names is \d+ s behind, 1 events"):
        await strict.ready()
    await patient.ready()
    await careless.ready()
    assert REGISTRY.get_sample_value("projection_lag_events", {"projection": "customer-names"}) == 1


class Coordinator:
    """An admin client whose coordinator gives these answers, the last of them for ever."""

    def __init__(self, *answers: KafkaError | dict[TopicPartition, OffsetAndMetadata]) -> None:
        self._answers = [*answers]

    async def list_consumer_group_offsets(
        self, group: str, *, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, KafkaError):
            raise answer
        return answer


FIRST, SECOND = TopicPartition("shop.order.paid", 0), TopicPartition("shop.order.paid", 1)
KNOWN = {FIRST: OffsetAndMetadata(7, ""), SECOND: OffsetAndMetadata(-1, "")}


async def test_a_coordinator_that_is_loading_is_waited_for() -> None:
    late = Coordinator(GroupCoordinatorNotAvailableError(), NodeNotReadyError(), {}, KNOWN)
    assert await TopicAdmin(late).committed_offsets("views", [FIRST, SECOND]) == {FIRST: 7}


@pytest.mark.parametrize("answer", [GroupCoordinatorNotAvailableError(), {}])
async def test_a_coordinator_that_stays_away_is_an_error(
    answer: KafkaError | dict[TopicPartition, OffsetAndMetadata],
) -> None:
    with pytest.raises(KafkaError):
        await TopicAdmin(Coordinator(answer)).committed_offsets("views", [FIRST], max_wait=0.2)


async def test_missing_permission_for_offsets_is_reported_at_once() -> None:
    refusing = Coordinator(GroupAuthorizationFailedError(), KNOWN)
    with pytest.raises(GroupAuthorizationFailedError):
        await TopicAdmin(refusing).committed_offsets("views", [FIRST])


async def test_a_broker_that_is_away_makes_the_lag_unknown(registry: EventRegistry) -> None:
    away = settings_for("127.0.0.1:9", "nobody")
    strict, careless = monitor(away, registry, 600.0), monitor(away, registry, None)
    for each in (strict, careless):
        await each.measure_once()
    with pytest.raises(Unhealthy, match="lag not measured"):
        await strict.ready()
    await careless.ready()


def series() -> set[str]:
    """The names of the metrics of lag that have a value."""
    return {
        sample.name
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("projection_lag_")
    }


async def test_lag_that_cannot_be_measured_any_more_has_no_series(
    kafka_settings: KafkaSettings, registry: EventRegistry
) -> None:
    measuring = monitor(kafka_settings, registry, None)
    await measuring.measure_once()
    assert series() == {"projection_lag_events", "projection_lag_seconds"}
    measuring._kafka = settings_for("127.0.0.1:9", "nobody")
    await measuring.measure_once()
    assert series() == set()


class Cli:
    """`app projections …`, on the test's servers."""

    async def __call__(self, *arguments: str) -> Result:
        return await run_cli("projections", *arguments)

    async def says(self, *arguments: str) -> str:
        """Run the command, which must succeed, and return its output."""
        done = await self(*arguments)
        assert done.exit_code == 0, f"exit code {done.exit_code}: {done.output}{done.exception!r}"
        return done.stdout


@pytest.fixture
def cli(
    migrated_database_url: str, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> Cli:
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_settings.kafka_bootstrap_servers)
    monkeypatch.setenv("SERVICE_NAME", kafka_settings.kafka_client_id)
    monkeypatch.setenv("KAFKA_GROUP_ID", kafka_settings.kafka_group_id)
    # The shop of these tests keeps its orders in tables, whatever the service keeps them in.
    rebuilt = projections.rebuilt_from(ORDER_ROWS)
    parts = [
        replace(part, projections=rebuilt) if part.name == "orders" else part
        for part in wiring.service.components
    ]
    monkeypatch.setattr(wiring, "service", Service(parts))
    return Cli()


async def test_the_projections_are_listed_with_their_tables(cli: Cli) -> None:
    assert (await cli.says("list")).splitlines()[:3] == [
        "order-views     order_views",
        "daily-sales     sales, daily_sales",
        "customer-names  customer_names",
    ]


async def test_a_rebuild_fills_the_read_side_and_shows_how_it_gets_on(cli: Cli, shop: Shop) -> None:
    user_id = await shop.sign_up("ada")
    ids = [await shop.place(user_id) for _ in range(3)]
    for name in ("order-views", "daily-sales", "customer-names"):
        rebuilt = await cli.says("rebuild", name, "--batch", "2")
    assert "customer-names: 1 of about 1 row\ncustomer-names: rebuilt from 1 row in" in rebuilt
    content = await shop.content()
    assert [row[0] for row in content["order_views"]] == ids
    assert content["customer_names"] == [(user_id, "ada")]


async def test_a_projection_that_is_not_there_is_said_to_be_missing(cli: Cli) -> None:
    answer = await cli("rebuild", "orders")
    assert answer.exit_code == 1
    assert "there is no projection orders; there are: order-views, daily-sales" in answer.output


async def test_status_shows_a_killed_rebuild_until_it_is_abandoned(cli: Cli, shop: Shop) -> None:
    await shop.place(await shop.sign_up("ada"))
    killed = shop.rebuild_views()
    await killed.register()
    await killed.fill()
    said = (await cli.says("status")).splitlines()
    assert said[0] == (
        "order-views     0 events behind, the oldest for 0 s"
        "; its rebuild was interrupted at 1 of 1 row"
    )
    assert said[1] == "daily-sales     0 events behind, the oldest for 0 s"
    abandoned = await cli.says("abandon", "order-views")
    assert abandoned == "order-views: abandoned; the old one stays in place\n"
    assert await shop.shadows() == []
    assert "there was no rebuild" in await cli.says("abandon", "order-views")


async def test_a_rebuild_is_refused_while_another_one_runs(cli: Cli, shop: Shop) -> None:
    await shop.place(await shop.sign_up("ada"))
    async with shop.database.sessions() as report, report.begin():
        await report.execute(text("SELECT count(*) FROM order_views"))  # the swap waits for it
        rebuilding = asyncio.create_task(shop.rebuild_views().run(lambda progress: None))
        status = await eventually(lambda: cli.says("status"), lambda said: "rebuild" in said)
        refused = await cli("rebuild", "order-views")
    await rebuilding
    assert "its rebuild runs at" in status
    assert refused.exit_code == 1
    assert "order-views is being rebuilt already" in refused.output
