"""In-doubt commits: committed events are published or reported, and no others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY as METRICS
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from structlog.testing import capture_logs

from app.platform.database import commit_outcome
from app.platform.database.commit_outcome import CommitTracker
from app.platform.database.engine import Database
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import EventRegistry, EventType
from app.platform.kafka.codec import decode
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.inbox import claim
from app.platform.kafka.publisher import DirectPublisher
from tests.fixtures import database_settings, eventually
from tests.platform.lossy import Cut, LossyNetwork, lossy_network
from tests.world import Counted, record_effect

REGISTRY = EventRegistry("ledger", [EventType(Counted)])
TOPIC = "ledger.thing.counted"


@dataclass
class Ledger:
    """A publisher after the commit, over a network that loses answers."""

    network: LossyNetwork
    database: Database
    direct: Database
    producer: FakeProducer
    deadline: float = 10.0

    @property
    def units(self) -> UnitOfWorkFactory:
        return UnitOfWorkFactory(
            self.database.sessions,
            lambda session: DirectPublisher(
                self.producer, REGISTRY, self.deadline, 1_000_000, CommitTracker(session)
            ),
        )

    async def write(self, number: int) -> None:
        async with self.units.begin() as uow:
            await count(uow, number)

    async def committed(self) -> list[int]:
        async with self.direct.engine.connect() as connection:
            return list(await connection.scalars(text("SELECT number FROM effects ORDER BY id")))

    @property
    def published(self) -> list[int]:
        events = [decode(m.topic, m.value, REGISTRY) for m in self.producer.sent]
        return [event.number for event in events if isinstance(event, Counted)]


async def count(uow: UnitOfWork, number: int) -> None:
    counted = Counted(name="key", number=number)
    await record_effect(counted, uow)
    await uow.events.publish(counted)


def lost() -> float:
    return METRICS.get_sample_value("kafka_events_lost_total", {"topic": TOPIC}) or 0.0


def through(network: LossyNetwork, command_seconds: float = 30.0) -> Database:
    settings = database_settings(network.url)
    return Database(
        settings.model_copy(update={"database_command_timeout_seconds": command_seconds})
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked several times a second."""
    monkeypatch.setattr(commit_outcome, "_LONGEST_SECONDS", 0.1)


@pytest.fixture
async def ledger(migrated_database_url: str, database: Database) -> AsyncIterator[Ledger]:
    async with database.engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE effects (id bigserial primary key, name text, number int)")
        )
    async with lossy_network(migrated_database_url) as network:
        ledger = Ledger(network, through(network), database, FakeProducer())
        yield ledger
        await ledger.database.close()
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP TABLE effects"))


def cutting(*cuts: Cut) -> Callable[[], Cut | None]:
    """Cut the first commits, and no later one."""
    left = iter(cuts)
    return lambda: next(left, None)


async def test_a_committed_event_is_published_once(ledger: Ledger) -> None:
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    before = lost()
    await ledger.write(1)
    assert ledger.network.made == [Cut.AFTER_COMMIT]
    assert await ledger.committed() == ledger.published == [1]
    assert lost() == before


@pytest.mark.parametrize("cut", [Cut.BEFORE_COMMIT, Cut.UNNOTICED])
async def test_an_event_rolled_back_is_not_published(ledger: Ledger, cut: Cut) -> None:
    ledger.network.cuts = cutting(cut)
    before = lost()
    with pytest.raises(DBAPIError):
        await ledger.write(1)
    assert await ledger.committed() == ledger.published == []
    assert lost() == before
    await ledger.write(2)
    assert await ledger.committed() == ledger.published == [2]


async def test_the_outcome_of_a_timed_out_commit_is_queried(ledger: Ledger) -> None:
    await ledger.database.close()
    ledger.database = through(ledger.network, command_seconds=1.0)
    ledger.network.cuts = cutting(Cut.SILENCE)
    await ledger.write(1)
    assert await ledger.committed() == ledger.published == [1]


async def test_a_request_cancelled_during_commit_publishes(ledger: Ledger) -> None:
    ledger.network.cuts = cutting(Cut.SILENCE)
    writing = asyncio.create_task(ledger.write(1))
    await eventually(ledger.committed)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert ledger.published == [1]


async def test_a_cancelled_query_is_reported(ledger: Ledger) -> None:
    """A second cancellation, as at the end of the process, does not wait for an answer."""
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    ledger.network.stays_away = True
    before = lost()
    writing = asyncio.create_task(ledger.write(1))
    await eventually(lambda: asyncio.sleep(0, ledger.network.refused))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert ledger.published == []
    assert lost() == before + 1


async def test_an_unknown_outcome_is_reported(ledger: Ledger) -> None:
    """The database is unavailable for longer than the deadline."""
    ledger.deadline = 0.5
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    ledger.network.stays_away = True
    before = lost()
    with capture_logs() as logs, pytest.raises(DBAPIError):
        await ledger.write(1)
    assert await ledger.committed() == [1]
    assert ledger.published == []
    assert lost() == before + 1
    (entry,) = [entry for entry in logs if entry["event"] == "event not published"]
    assert (entry["log_level"], entry["key"]) == ("error", "key")
    assert '"number":1' in entry["value"]
    assert "CommitOutcomeUnknown" in entry["error"]


async def test_another_server_does_not_know_the_outcome(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash or a fail-over, the id may belong to another transaction."""
    mark = "SELECT pg_current_xact_id()::text, pg_postmaster_start_time() - interval '1 s'"
    monkeypatch.setattr(commit_outcome, "_CURRENT_TRANSACTION", mark)
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    before = lost()
    with pytest.raises(DBAPIError):
        await ledger.write(1)
    assert ledger.published == []
    assert lost() == before + 1


async def test_a_refused_commit_is_not_in_doubt(ledger: Ledger) -> None:
    async with ledger.direct.engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE effects ADD UNIQUE (number) DEFERRABLE INITIALLY DEFERRED")
        )
    await ledger.write(1)
    with capture_logs() as logs, pytest.raises(IntegrityError):
        await ledger.write(1)
    assert "answer to COMMIT lost" not in [entry["event"] for entry in logs]
    assert ledger.published == [1]


async def test_a_consumer_publishes_the_events_of_its_handlers(ledger: Ledger) -> None:
    """Repeating the transaction would find the event in the inbox, and publish nothing."""
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    received = uuid4()
    async with ledger.units.begin() as uow:
        assert await claim(uow.session, "counter", [received]) == {received}
        await count(uow, 1)
    assert await ledger.committed() == ledger.published == [1]


async def test_a_savepoint_is_not_taken_for_the_transaction(ledger: Ledger) -> None:
    ledger.network.cuts = cutting(Cut.AFTER_COMMIT)
    async with ledger.units.begin() as uow:
        async with uow.session.begin_nested():
            await count(uow, 1)
        async with uow.session.begin_nested():
            await count(uow, 2)
    assert await ledger.committed() == ledger.published == [1, 2]
