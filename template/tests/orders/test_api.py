"""The example domain on a real database: what its API publishes, repeats and tells of failures;
its repositories and its handlers.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import delete, func, select, text, update
from structlog.testing import capture_logs

from app.orders.domain import Order, OrderItem, OrderStatus, evolve, pay, place
from app.orders.events import OrderCreated, OrderLine
from app.orders.handlers import reserve_inventory
from app.orders.models import OrderItemRow, OrderRow
from app.orders.repository import (
    InventoryRepository,
    OrderFilter,
    OrderRepository,
    SqlOrderQueries,
    SqlOrderRepository,
)
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.errors import VersionConflict
from app.platform.http.idempotency import (
    IdempotencyRecord,
    IdempotencyRepository,
    StoredResponse,
)
from app.posts.events import PostPublished
from app.posts.handlers import count_posts
from app.users.events import UserCreated
from app.users.handlers import create_profile
from app.users.models import Profile, User
from app.users.repository import ProfileRepository
from tests.api import assert_problem
from tests.fixtures import eventually
from tests.orders.api import change, new_order, new_user, plans, sign_up
from tests.orders.api import place as place_over_http
from tests.world import Api, NoPublisher, failing_commit, failing_insert, serving


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
    order = (await place_over_http(api.http)).json()
    (event,) = api.published("order.created")
    assert event["order_id"] == order["id"]
    assert event["order_version"] == order["version"] == 1
    for name in ("user_id", "items", "total", "status"):
        assert event[name] == order[name]


@pytest.mark.parametrize(("action", "status"), [("pay", "paid"), ("cancel", "cancelled")])
async def test_each_change_publishes_the_whole_order(api: Api, action: str, status: str) -> None:
    placed = (await place_over_http(api.http)).json()
    order = (await change(api.http, placed["id"], action, '"1"')).json()
    (event,) = api.published(f"order.{status}")
    assert event["order_id"] == order["id"]
    assert event["order_version"] == order["version"] == 2
    for name in ("user_id", "items", "total", "status"):
        assert event[name] == order[name]


async def test_a_change_that_is_refused_publishes_nothing(api: Api) -> None:
    placed = (await place_over_http(api.http)).json()
    for if_match in ('"2"', '"1"', '"2"'):
        await change(api.http, placed["id"], "pay", if_match)
    assert len(api.published("order.paid")) == 1


async def test_the_events_of_one_order_have_one_key(api: Api) -> None:
    placed = (await place_over_http(api.http)).json()
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
        await keys.complete(
            SCOPE, KEY, StoredResponse(201, {"Location": "/orders/77"}, b'{"id":77}')
        )
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
        assert await session.scalar(select(func.count()).select_from(IdempotencyRecord)) == 0


async def test_a_key_is_kept_for_a_day(database: Database, migrated_database_url: str) -> None:
    async with database.sessions() as session:
        for key, age in [
            ("kept", timedelta(hours=23, minutes=59)),
            ("old", timedelta(hours=24, minutes=1)),
        ]:
            await IdempotencyRepository(session).claim(SCOPE, key, b"whatever")
            aged = update(IdempotencyRecord).where(IdempotencyRecord.key == key)
            await session.execute(aged.values(created_at=func.now() - age))
        await session.commit()

    async def keys() -> set[str]:
        async with database.sessions() as session:
            return set(await session.scalars(select(IdempotencyRecord.key)))

    async with serving(migrated_database_url):
        assert await eventually(keys, {"kept"}.__eq__) == {"kept"}


async def first_fingerprint(api: Api, database: Database, order: dict[str, Any]) -> bytes | None:
    """The fingerprint that the API gives to `order`; its key is free again afterwards."""
    await post(api, order)
    async with database.sessions() as session:
        fingerprint = await session.scalar(select(IdempotencyRecord.fingerprint))
        await session.execute(delete(IdempotencyRecord))
        await session.commit()
    return fingerprint


INTERNAL_ERROR = "XX000"
SHUTTING_DOWN = "57P01"


async def users(database: Database) -> int | None:
    async with database.sessions() as session:
        return await session.scalar(select(func.count()).select_from(User))


async def test_a_commit_that_fails_is_no_success(api: Api, database: Database) -> None:
    with capture_logs():
        async with failing_commit(database, "users", INTERNAL_ERROR):
            answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 500)
    assert await users(database) == 0
    assert api.producer.sent == []


async def test_a_commit_that_fails_for_now_may_be_repeated(api: Api, database: Database) -> None:
    async with failing_commit(database, "users", SHUTTING_DOWN):
        answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert api.producer.sent == []


async def test_an_unexpected_error_is_only_logged(api: Api, database: Database) -> None:
    with capture_logs() as logs:
        async with failing_insert(database, "users", INTERNAL_ERROR):
            answer = await api.http.post("/users", json=new_user())
    assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-correlation-id"]
    (logged,) = (entry for entry in logs if entry["log_level"] == "error")
    assert "a secret of the database" in str(logged["exc_info"])


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


# What is below the API: repositories and handlers.

ITEMS = (OrderItem("tea", 2, Decimal("3.50")), OrderItem("cup", 1, Decimal("0.01")))


@pytest.fixture
async def uow(database: Database) -> AsyncIterator[UnitOfWork]:
    async with UnitOfWorkFactory(database.sessions, lambda _session: NoPublisher()).begin() as uow:
        uow.session.add(User(id=7, email="ada@example.com", username="ada"))
        await uow.session.flush()
        yield uow


@pytest.fixture
def orders(uow: UnitOfWork) -> OrderRepository:
    return SqlOrderRepository(uow)


async def new_id(orders: OrderRepository) -> int:
    order_id = await orders.next_id(7)
    assert order_id is not None
    return order_id


async def placed(orders: OrderRepository) -> Order:
    events = place(await new_id(orders), 7, ITEMS)
    order = evolve(None, events[0])
    await orders.save(order, events, expected_version=0)
    return order


async def test_an_order_is_loaded_as_it_was_saved(orders: OrderRepository) -> None:
    order = await placed(orders)
    assert await orders.get(order.id) == order


async def test_ids_are_never_given_twice(orders: OrderRepository) -> None:
    ids = [await new_id(orders) for _ in range(5)]
    assert len(set(ids)) == 5


async def test_an_unknown_user_gets_no_id(orders: OrderRepository) -> None:
    assert await orders.next_id(8) is None


async def test_an_order_that_was_never_saved_is_not_there(orders: OrderRepository) -> None:
    assert await orders.get(await new_id(orders)) is None


async def test_a_change_is_saved_over_the_version_that_it_began_with(
    orders: OrderRepository,
) -> None:
    order = await placed(orders)
    events = pay(order)
    paid = evolve(order, events[0])
    await orders.save(paid, events, expected_version=order.version)
    assert await orders.get(order.id) == paid


@pytest.mark.parametrize("expected_version", [2, 3])
async def test_a_change_of_another_version_is_a_conflict(
    orders: OrderRepository, expected_version: int
) -> None:
    order = await placed(orders)
    events = pay(order)
    with pytest.raises(VersionConflict):
        await orders.save(evolve(order, events[0]), events, expected_version)
    assert await orders.get(order.id) == order


async def test_an_order_that_is_there_cannot_be_new(orders: OrderRepository) -> None:
    order = await placed(orders)
    with pytest.raises(VersionConflict):
        await orders.save(order, place(order.id, 7, ITEMS), expected_version=0)


@pytest.fixture
async def many_orders(database: Database) -> SqlOrderQueries:
    """Two thousand orders of a hundred users, each of two items, with statistics."""
    async with database.sessions() as session, session.begin():
        session.add_all(User(id=n, email=f"{n}@example.com", username=f"u{n}") for n in range(100))
        await session.flush()
        session.add_all(
            OrderRow(
                id=n, user_id=n % 100, status=OrderStatus(STATUSES[n % 20]), total=1, version=1
            )
            for n in range(1, 2001)
        )
        await session.flush()
        session.add_all(
            OrderItemRow(order_id=n, position=position, sku="tea", quantity=1, unit_price=1)
            for n in range(1, 2001)
            for position in range(2)
        )
    async with database.engine.begin() as connection:
        await connection.execute(text("ANALYZE orders, order_items"))
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
    many_orders: SqlOrderQueries, database: Database, wanted: OrderFilter, index: str
) -> None:
    async with plans(database) as found:
        page = await many_orders.page(wanted, before=1500, limit=10)
    assert [len(order.items) for order in page] == [2] * 10
    assert index in found[0]
    assert "pk_order_items" in found[0]
    assert "Seq Scan" not in found[0]


ADA = UserCreated(user_id=7, email="ada@example.com", username="ada", phone=None)


@pytest.fixture
def units(database: Database) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(database.sessions, lambda _session: NoPublisher())


async def profile(database: Database) -> Profile | None:
    async with database.sessions() as session:
        return await session.get(Profile, ADA.user_id)


def published(post_id: int, author_id: int = ADA.user_id) -> PostPublished:
    return PostPublished(post_id=post_id, author_id=author_id, title="On engines")


def created(order_id: int, skus: Sequence[str]) -> OrderCreated:
    return OrderCreated(
        order_id=order_id,
        order_version=1,
        user_id=ADA.user_id,
        status="placed",
        items=tuple(OrderLine(sku=sku, quantity=2, unit_price=Decimal(1)) for sku in skus),
        total=Decimal(2 * len(skus)),
    )


async def test_a_profile_begins_when_the_user_signed_up(
    units: UnitOfWorkFactory, database: Database
) -> None:
    async with units.begin() as uow:
        await create_profile(ADA, uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp
    assert made.posts_published == 0


async def test_posts_that_come_before_the_user_are_not_lost(
    units: UnitOfWorkFactory, database: Database
) -> None:
    async with units.begin() as uow:
        await count_posts([published(1), published(2)], uow)
    early = await profile(database)
    assert early is not None
    assert early.created_at is None
    async with units.begin() as uow:
        await create_profile(ADA, uow)
        await count_posts([published(3)], uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp
    assert made.posts_published == 3


async def test_a_second_event_of_one_user_does_not_move_the_beginning(
    units: UnitOfWorkFactory, database: Database
) -> None:
    for event in (ADA, ADA.model_copy(update={"timestamp": published(1).timestamp})):
        async with units.begin() as uow:
            await create_profile(event, uow)
    made = await profile(database)
    assert made is not None
    assert made.created_at == ADA.timestamp


async def test_a_batch_counts_every_order_and_every_line(
    units: UnitOfWorkFactory, database: Database
) -> None:
    async with units.begin() as uow:
        await reserve_inventory([created(1, ["tea", "cup", "tea"]), created(2, ["tea"])], uow)
    async with database.sessions() as session:
        inventory = InventoryRepository(session)
        assert await inventory.reserved("tea") == 6
        assert await inventory.reserved("cup") == 2


async def test_a_batch_may_exceed_the_arguments_of_a_statement(
    units: UnitOfWorkFactory,
) -> None:
    async with units.begin() as uow:
        inventory = InventoryRepository(uow.session)
        await inventory.reserve({f"sku-{number}": number for number in range(40_000)})
        assert await inventory.reserved("sku-39999") == 39_999
        await ProfileRepository(uow.session).add_posts(dict.fromkeys(range(40_000), 1))


async def test_an_order_without_items_reserves_nothing(units: UnitOfWorkFactory) -> None:
    async with units.begin() as uow:
        await reserve_inventory([created(1, [])], uow)
        await count_posts([], uow)


async def test_batches_with_the_same_skus_wait_instead_of_deadlocking(
    units: UnitOfWorkFactory, database: Database
) -> None:
    skus = [f"sku-{number}" for number in range(50)]

    async def reserve(skus: list[str]) -> None:
        async with units.begin() as uow:
            await reserve_inventory(
                [created(number, [sku]) for number, sku in enumerate(skus, 1)], uow
            )

    await asyncio.gather(*(reserve(skus if number % 2 else skus[::-1]) for number in range(8)))
    async with database.sessions() as session:
        assert await InventoryRepository(session).reserved("sku-0") == 16


async def test_batches_with_the_same_authors_do_not_deadlock(
    units: UnitOfWorkFactory, database: Database
) -> None:
    authors = list(range(1, 51))

    async def count(authors: list[int]) -> None:
        async with units.begin() as uow:
            await count_posts([published(author, author) for author in authors], uow)

    await asyncio.gather(*(count(authors if number % 2 else authors[::-1]) for number in range(8)))
    made = await profile(database)
    assert made is not None
    assert made.posts_published == 8
