"""Publishing through the outbox: rows, round trips, measurements and commands."""

import asyncio
import cProfile
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs
from typer.testing import Result

from app import wiring
from app.platform import tracing
from app.platform.config import HttpSettings, Settings
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.events.event import EventRegistry, EventType
from app.platform.health import Health
from app.platform.http.app import create_app, open_runtime
from app.platform.kafka.admin import provision
from app.platform.kafka.codec import Message, encode
from app.platform.kafka.consumers import consuming
from app.platform.kafka.errors import MessageRejected, MessageTooLarge, SendError
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import RetryPolicy, Subscription
from app.platform.kafka.topics import required_topics
from app.platform.outbox import monitor, relay, store
from app.platform.outbox.monitor import Monitor
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.store import waiting_buckets
from app.platform.outbox.transaction import transaction
from app.platform.runtime import Configuration
from app.platform.service import Role
from app.platform.tracing import Trace
from tests.fixtures import database_settings, eventually, settings_for
from tests.platform.outbox.conftest import (
    MAX_BYTES,
    MOVED,
    SOLD,
    TOPICS,
    Moved,
    Sold,
    World,
    in_order_by_key,
    moved,
    outbox_settings,
)
from tests.world import missing_table, run_cli


async def stored_numbers(world: World) -> list[int]:
    return [Moved.model_validate_json(row["value"]).number for row in await world.rows()]  # type: ignore[arg-type]  # bytes


async def test_a_commit_stores_the_published_events(world: World) -> None:
    async with world.units.begin() as uow:
        await uow.events.publish(moved(1)[0])
        assert await world.rows() == []
    assert await stored_numbers(world) == [0]


async def test_a_rollback_stores_nothing(world: World) -> None:
    with suppress(RuntimeError):
        async with world.units.begin() as uow:
            await uow.events.publish(moved(1)[0])
            raise RuntimeError("after publishing")
    assert await world.rows() == []
    assert not world.published.is_set()


async def test_publishers_of_one_session_store_all_events(world: World) -> None:
    settings = world.settings, MAX_BYTES, world.published
    first, second, third = moved(3)
    async with world.database.sessions() as session, session.begin():
        publishers = [OutboxPublisher(session, world.registry, *settings) for _ in range(2)]
        await publishers[0].publish(first)
        await publishers[1].publish(second)
        await publishers[0].publish(third)
    assert await stored_numbers(world) == [0, 1, 2]


async def test_a_session_goes_on_after_a_rollback_and_a_commit(world: World) -> None:
    first, second, third = moved(3)
    async with world.database.sessions() as session:
        publisher = OutboxPublisher(
            session, world.registry, world.settings, MAX_BYTES, world.published
        )
        with suppress(RuntimeError):
            async with session.begin():
                await publisher.publish(first)
                raise RuntimeError("after publishing")
        for later in (second, third):
            async with session.begin():
                await publisher.publish(later)
    assert await stored_numbers(world) == [1, 2]


async def test_an_event_costs_no_listener_and_no_returned_id(world: World) -> None:
    """Both would cost a request as much as a third of the INSERT."""
    statements: list[str] = []
    async with world.database.sessions() as session, session.begin():
        connection = await session.connection()

        @event.listens_for(connection.sync_connection, "before_cursor_execute")
        def _(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        publisher = OutboxPublisher(
            session, world.registry, world.settings, MAX_BYTES, world.published
        )
        with cProfile.Profile(builtins=False) as profile:
            await publisher.publish(moved(1)[0])
    called = {entry.code.co_name for entry in profile.getstats() if not isinstance(entry.code, str)}
    assert "publish" in called
    assert "listen" not in called
    (insert,) = statements
    assert insert.startswith("INSERT INTO outbox")
    assert "RETURNING" not in insert


async def test_ids_ascend_in_the_order_of_publishing(world: World) -> None:
    await world.write(*moved(100))
    assert await stored_numbers(world) == list(range(100))


async def test_an_unsendable_event_fails_its_transaction(world: World) -> None:
    with pytest.raises(MessageTooLarge, match="more than KAFKA_MAX_MESSAGE_BYTES=100000"):
        await world.write(
            Moved(name="k", number=1), Moved(name="k", number=2, load="x" * MAX_BYTES)
        )
    assert await world.rows() == []


async def test_an_unregistered_event_fails_its_transaction(world: World) -> None:
    class Unheard(Moved):
        pass

    with pytest.raises(LookupError, match="add it to EVENTS"):
        await world.write(Unheard(name="k", number=1))


async def test_the_row_holds_the_message_of_the_codec(world: World) -> None:
    event = Moved(name="k-\N{SNOWMAN}", number=1)
    trace = Trace("story", "cause")
    context = tracing.context_of_traceparent(f"00-{7:032x}-{9:016x}-01")
    with tracing.bind_trace(trace, context):
        await world.write(event)
        message = encode(event, world.registry, trace)
    async with world.database.engine.begin() as connection:
        buckets = await waiting_buckets(connection)
    async with transaction(world.database.engine, 5, 5, buckets) as opened:
        _, (row,), _ = await opened.oldest_rows(10, 1_000_000)
    assert (row.message.topic, row.message.key, row.message.value) == (
        message.topic,
        message.key,
        message.value,
    )
    assert dict(row.message.headers) == dict(message.headers)


async def test_events_of_a_savepoint_are_rolled_back_with_it(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested():
                await uow.events.publish(second)
                raise RuntimeError("in the savepoint")
        await uow.events.publish(third)
    assert await stored_numbers(world) == [0, 2]


async def test_events_of_a_released_savepoint_keep_their_order(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        async with uow.session.begin_nested():
            await uow.events.publish(second)
        await uow.events.publish(third)
    assert await stored_numbers(world) == [0, 1, 2]


async def test_an_outer_savepoint_rolls_back_an_inner_one(world: World) -> None:
    first, second, third = moved(3)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested():
                async with uow.session.begin_nested():
                    await uow.events.publish(second)
                raise RuntimeError("in the outer savepoint")
        await uow.events.publish(third)
    assert await stored_numbers(world) == [0, 2]


async def test_a_failed_release_keeps_the_events_before_it(
    world: World,
) -> None:
    first, second = moved(2)
    async with world.units.begin() as uow:
        await uow.events.publish(first)
        with suppress(RuntimeError):
            async with uow.session.begin_nested() as savepoint:
                await uow.events.publish(second)
                await uow.session.run_sync(lambda session: session.dispatch.before_commit(session))
                assert savepoint.is_active
                raise RuntimeError("after the rows were written")
    assert await stored_numbers(world) == [0]


async def test_a_commit_wakes_the_relay_of_its_process(world: World) -> None:
    await world.write()
    assert not world.published.is_set()
    await world.write(moved(1)[0])
    assert world.published.is_set()


async def test_the_gauges_count_pending_and_parked_events(world: World) -> None:
    world.producer = RefusesSold()
    await world.write(Sold(name="a", number=1), Moved(name="a", number=2))
    async with world.relaying():
        await world.has_parked(2)
    await world.write(*moved(3))
    seen = await Monitor(world.database.probe, 60).measure()
    assert (seen.pending, seen.parked, seen.blocked) == (3, 1, 1)
    assert 0 < seen.lag_seconds < 60
    assert REGISTRY.get_sample_value("outbox_pending") == 3
    assert REGISTRY.get_sample_value("outbox_parked") == 1
    assert REGISTRY.get_sample_value("outbox_held") == 1


async def test_the_outbox_is_measured_while_the_pool_is_empty(
    world: World, migrated_database_url: str
) -> None:
    await world.write(*moved(2))
    small = {"database_pool_size": 1, "database_max_overflow": 0}
    database = Database(database_settings(migrated_database_url).model_copy(update=small))
    async with database.engine.connect():
        assert (await Monitor(database.probe, 60).measure()).pending == 2
    await database.close()


async def test_only_the_relay_that_parks_an_event_reports_it(world: World) -> None:
    """The other processes see it in the gauges."""
    world.producer = RefusesSold()
    await world.write(Sold(name="a", number=1))
    with capture_logs() as logs:
        async with world.relaying(count=2):
            await world.has_parked(1)
            await Monitor(world.database.metrics_probe, 60).measure()
    reports = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["topic"]) for entry in reports] == [("event parked", SOLD)]


async def test_an_empty_outbox_has_no_lag(world: World) -> None:
    seen = await Monitor(world.database.probe, 60).measure()
    assert (seen.pending, seen.lag_seconds) == (0, 0.0)


async def test_sent_events_are_counted_by_topic(world: World) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("outbox_relayed_total", {"topic": MOVED}) or 0.0

    before = count()
    await world.write(*moved(7))
    async with world.relaying():
        await world.is_empty()
        await eventually(lambda: asyncio.sleep(0, count() == before + 7))


def configuration(database_url: str) -> Configuration:
    return Configuration(
        Settings(service_name="shop", _env_file=None),
        settings_for("127.0.0.1:9", "shop"),  # unused: the producer is a fake
        database_settings(database_url),
        HttpSettings(_env_file=None),
    )


@asynccontextmanager
async def serving(
    database_url: str, producer: FakeProducer, roles: Collection[Role] = (Role.RELAY,)
) -> AsyncIterator[AsyncClient]:
    """A process with these roles."""
    app = create_app(wiring.service, set(roles), configuration(database_url), producer)
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://relay") as http,
    ):
        yield http


async def test_a_commit_in_the_api_wakes_another_process(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_POLL_SECONDS", "60")
    producer = FakeProducer(TOPICS)
    async with (
        open_runtime(wiring.service, {Role.RELAY}, configuration(migrated_database_url), producer),
        open_runtime(
            wiring.service, {Role.API}, configuration(migrated_database_url), producer
        ) as api,
    ):
        await asyncio.sleep(0.5)
        world.published = api.published
        await world.write(*moved(1))
        await world.is_empty()


@pytest.mark.parametrize("pooler", [False, True])
async def test_a_relay_listens_only_where_no_pooler_is_between(
    migrated_database_url: str, monkeypatch: pytest.MonkeyPatch, pooler: bool
) -> None:
    listened: list[object] = []

    @asynccontextmanager
    async def listening(engine: object, _published: object) -> AsyncIterator[None]:
        listened.append(engine)
        yield

    monkeypatch.setattr(relay, "listening", listening)
    settings = configuration(migrated_database_url)
    database = settings.database.model_copy(update={"database_pooler": pooler})
    async with open_runtime(
        wiring.service, {Role.RELAY}, replace(settings, database=database), FakeProducer()
    ):
        assert bool(listened) is not pooler


async def has_said(http: AsyncClient, words: str, check: str = "relay") -> None:
    """Wait until the relay's readiness contains the text."""
    said = await eventually(
        lambda: http.get("/health/ready"), lambda a: words in a.json()["checks"][check], 20
    )
    if words != "ok":
        assert said.status_code == 503


async def test_a_relay_waits_for_its_tables_and_logs_it_once(
    world: World, migrated_database_url: str
) -> None:
    with capture_logs() as logs:
        async with serving(migrated_database_url, FakeProducer(TOPICS)) as http:
            async with missing_table(world.database, "outbox_buckets"):
                await has_said(http, 'ProgrammingError: relation "outbox_buckets" does not exist')
            await has_said(http, "ok")
            await world.write(*moved(1))
            await world.is_empty()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_a_relay_is_not_ready_without_a_broker(
    world: World, migrated_database_url: str
) -> None:
    producer = FakeProducer()
    producer.available = False
    await world.write(*moved(1))
    async with serving(migrated_database_url, producer) as http:
        await has_said(http, "the fake broker is unavailable")
        assert (await http.get("/health/live")).json()["checks"]["relay"] == "ok"
        producer.available = True
        await has_said(http, "ok")


@pytest.mark.parametrize(
    ("roles", "status"),
    [
        ({Role.API}, 200),
        ({Role.WORKER}, 503),
        ({Role.RELAY}, 503),
        ({Role.API, Role.RELAY}, 503),
    ],
)
async def test_readiness_without_kafka_depends_on_the_role(
    world: World, migrated_database_url: str, roles: set[Role], status: int
) -> None:
    producer = FakeProducer()
    producer.available = False
    async with serving(migrated_database_url, producer, roles) as http:
        answer = await http.get("/health/ready")
        assert answer.status_code == status, answer.text
        assert "the fake broker is unavailable" in answer.json()["checks"]["producer"]
        assert ("not needed" in answer.json()["checks"]["producer"]) is (status == 200)
        assert answer.json()["status"] == ("ok" if status == 200 else "unavailable")
        assert (await http.get("/health/live")).status_code == 200


@pytest.fixture(autouse=True)
def own_gauges(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use gauges that the service of other tests, in the same process, does not set."""
    of_the_process, own = monitor.gauges, monitor.Gauges()
    REGISTRY.unregister(of_the_process)
    REGISTRY.register(own)
    monkeypatch.setattr(monitor, "gauges", own)
    yield
    REGISTRY.unregister(own)
    REGISTRY.register(of_the_process)


GAUGES = ("outbox_pending", "outbox_oldest_age_seconds", "outbox_parked", "outbox_held")


@pytest.mark.parametrize("role", [Role.API, Role.WORKER])
async def test_the_outbox_is_measured_without_a_relay(
    world: World, migrated_database_url: str, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_MAX_LAG_SECONDS", "0.001")
    monkeypatch.setattr(monitor, "INTERVAL_SECONDS", 0.1)
    assert [REGISTRY.get_sample_value(name) for name in GAUGES] == [None] * 4
    await world.write(*moved(3))
    async with serving(migrated_database_url, FakeProducer(), {role}) as http:
        await has_measured(3.0)
        checks = (await http.get("/health/ready")).json()["checks"]
        assert "not needed by this process" in checks["outbox"]
        async with missing_table(world.database, "outbox_parked"):
            await has_measured(None)
        await has_measured(3.0)
    assert [REGISTRY.get_sample_value(name) for name in GAUGES] == [None] * 4


async def test_a_locked_outbox_does_not_delay_readiness(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "INTERVAL_SECONDS", 0.05)
    async with (
        serving(migrated_database_url, FakeProducer(), {Role.API}) as http,
        world.database.engine.begin() as connection,
    ):
        await connection.execute(text("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE"))
        await eventually(lambda: waiting_for_lock(connection), lambda count: count == 1, 20)
        answer = await http.get("/health/ready")
        assert answer.status_code == 200, answer.text
        assert await waiting_for_lock(connection) == 1


async def waiting_for_lock(connection: AsyncConnection) -> int:
    """Count the connections that wait for a lock of the table `outbox`."""
    found = await connection.execute(
        text(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE datname = current_database() AND relation = 'outbox'::regclass AND NOT granted"
        )
    )
    return int(found.scalar_one())


async def has_measured(pending: float | None) -> None:
    async def seen() -> list[float | None]:
        return [REGISTRY.get_sample_value(name) for name in GAUGES]

    await eventually(seen, lambda values: values[0] == pending, 20)
    assert [value is None for value in await seen()] == [pending is None] * 4


async def test_counting_the_outbox_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "COUNT_LIMIT", 2)
    await world.write(*moved(3))
    assert (await Monitor(world.database.probe, 60).measure()).pending == 2
    assert (await monitor.measure(world.database.probe)).pending == 3


async def test_a_relay_is_not_ready_while_events_wait_too_long(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_MAX_LAG_SECONDS", "0.001")
    await world.write(*moved(1))
    async with world.database.engine.begin() as connection:
        await store.waiting_buckets(connection)
    async with world.database.engine.begin() as connection:
        # Another relay has locked the bucket.
        await connection.execute(text("SELECT FROM outbox_buckets FOR UPDATE"))
        async with serving(migrated_database_url, FakeProducer()) as http:
            await has_said(http, "the oldest event has waited", "outbox")
            await connection.rollback()
            await has_said(http, "ok", "outbox")


async def app(*arguments: str) -> Result:
    return await run_cli("outbox", *arguments)


class RefusesSold(FakeProducer):
    """A producer that refuses every `Sold` permanently."""

    def _refusal(self, message: Message) -> SendError | None:
        return MessageRejected("too large for its topic") if message.topic == SOLD else None


@pytest.fixture
async def parked(
    world: World, migrated_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    """One event that cannot be sent, and one blocked by it."""
    monkeypatch.setenv("DATABASE_URL", migrated_database_url)
    world.producer = RefusesSold()
    await world.write(Sold(name="a", number=1), Moved(name="a", number=2))
    async with world.relaying():
        await world.has_parked(2)
    return world


async def first_id(world: World) -> str:
    return str((await world.rows("outbox_parked"))[0]["id"])


async def test_status_shows_pending_and_parked_events(parked: World) -> None:
    await parked.write(Moved(name="b", number=3))
    result = await app("status")
    assert result.exit_code == 0
    assert "shop.thing.sold key=a  MessageRejected: too large for its topic" in result.output
    assert "1 pending" in result.output
    assert "1 parked, 1 blocked by them" in result.output


async def test_show_prints_a_parked_event_whole(parked: World) -> None:
    result = await app("show", await first_id(parked))
    assert result.exit_code == 0
    for part in ("MessageRejected", "ce_type: thing.sold", '"number": 1', "content-type"):
        assert part in result.output


async def test_show_of_an_event_that_is_not_parked_is_an_error(parked: World) -> None:
    result = await app("show", "999")
    assert result.exit_code == 1
    assert "event 999 is not parked" in result.output


async def test_retry_restores_the_event_and_those_it_blocked(parked: World) -> None:
    result = await app("retry", await first_id(parked))
    assert "moved 2 events back into the outbox" in result.output
    assert [row["topic"] for row in await parked.rows()] == ["shop.thing.sold", MOVED]
    assert await parked.rows("outbox_parked") == []


async def test_discard_restores_the_events_it_blocked(parked: World) -> None:
    result = await app("discard", "--key", "a")
    assert "deleted 1 event" in result.output
    assert [row["topic"] for row in await parked.rows()] == [MOVED]
    assert await parked.rows("outbox_parked") == []


@pytest.mark.parametrize("command", ["retry", "discard"])
async def test_a_dry_run_changes_nothing(parked: World, command: str) -> None:
    before = await parked.rows("outbox_parked")
    result = await app(command, "--all", "--dry-run")
    assert f"would {command}" in result.output
    assert await parked.rows("outbox_parked") == before


@pytest.mark.parametrize("command", ["retry", "discard"])
async def test_events_have_to_be_selected(parked: World, command: str) -> None:
    result = await app(command)
    assert result.exit_code == 1
    assert "no event is selected" in result.output
    assert len(await parked.rows("outbox_parked")) == 2


async def test_an_id_that_is_not_parked_changes_nothing(parked: World) -> None:
    result = await app("retry", await first_id(parked), "999")
    assert result.exit_code == 1
    assert "not parked: 999" in result.output
    assert len(await parked.rows("outbox_parked")) == 2


FAST = RetryPolicy(attempts=3, initial=0.01, maximum=0.02)
EVENTS = 200


@pytest.fixture
async def service(
    database: Database, kafka_settings: KafkaSettings, producer: KafkaProducer
) -> AsyncIterator[World]:
    """A world on a real broker, with a table of effects."""
    registry = EventRegistry(kafka_settings.kafka_client_id, [EventType(Moved), EventType(Sold)])
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE TABLE effects (id bigserial primary key, what text, name text, number int)"
            )
        )
    yield World(database, settings=outbox_settings(outbox_batch_rows=20), registry=registry)
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE effects"))


async def effect(what: str, event: Moved | Sold, uow: UnitOfWork) -> None:
    await uow.session.execute(
        text("INSERT INTO effects (what, name, number) VALUES (:what, :name, :number)"),
        {"what": what, "name": event.name, "number": event.number},
    )


class Selling:
    """A handler that writes, publishes, and then fails at the first sight of every tenth event."""

    def __init__(self) -> None:
        self.failed: set[int] = set()

    async def __call__(self, event: Moved, uow: UnitOfWork) -> None:
        await effect("moved", event, uow)
        await uow.events.publish(Sold(name=event.name, number=event.number))
        if event.number % 10 == 0 and event.number not in self.failed:
            self.failed.add(event.number)
            raise RuntimeError("after publishing")


async def note_sale(event: Sold, uow: UnitOfWork) -> None:
    await effect("sold", event, uow)


async def test_effects_and_events_of_handlers_exist_exactly_once(
    service: World, kafka_settings: KafkaSettings, producer: KafkaProducer
) -> None:
    selling = Selling()
    subscriptions = [
        Subscription("seller", {Moved: selling}, retry=FAST),
        Subscription("books", {Sold: note_sale}),
    ]
    topics = required_topics(kafka_settings, service.registry, subscriptions)
    await provision(kafka_settings, topics)

    async def effects(what: str) -> list[tuple[str, int]]:
        query = text("SELECT name, number FROM effects WHERE what = :what ORDER BY id")
        async with service.database.engine.connect() as connection:
            return [(r.name, r.number) for r in await connection.execute(query, {"what": what})]

    async with consuming(
        subscriptions, service.registry, kafka_settings, service.units, producer, Health()
    ):
        async with service.relaying(2, producer):
            events = moved(EVENTS)
            for start in range(0, EVENTS // 2, 10):
                await service.write(*events[start : start + 10])
        # Both have stopped half-way; another relay takes over.
        for start in range(EVENTS // 2, EVENTS, 10):
            await service.write(*events[start : start + 10])
        async with service.relaying(1, producer):
            await eventually(lambda: effects("sold"), lambda rows: len(rows) >= EVENTS, 30)
            await service.is_empty()
            await asyncio.sleep(0.2)
    for what in ("moved", "sold"):
        found = await effects(what)
        assert len(found) == EVENTS, what
        assert in_order_by_key(found), what
    assert len(selling.failed) == EVENTS // 10
