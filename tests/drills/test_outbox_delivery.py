"""The outbox delivers every committed event in order, through kills, cuts, freezes and outages."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import gt
from uuid import UUID

import httpx
from pydantic import SecretStr
from sqlalchemy import text

from app.drill import Ticked
from app.platform import logs
from app.platform.background import WakeUp
from app.platform.database.engine import Database, DatabaseSettings
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.dev.kafka import KafkaCluster
from app.platform.kafka.admin import read_to_end, reading
from app.platform.outbox.publisher import OutboxPublisher
from app.platform.outbox.settings import OutboxSettings
from drills.bench import Bench, eventually, out_of_order
from drills.conftest import MakeBench
from drills.service import Process

KEYS, WRITERS = 40, 6
KILLS, CUTS, BATCH, TASKS = 9, 6, 20, 2
DRAIN_SECONDS = 5
AGGREGATES = "CREATE TABLE aggregates (id uuid PRIMARY KEY, version int NOT NULL)"
TOUCH = text(
    "INSERT INTO aggregates VALUES (CAST(md5(:name) AS uuid), 1) ON CONFLICT (id)"
    " DO UPDATE SET version = aggregates.version + 1 RETURNING version"
)
OTHER_BACKENDS = "WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Undone(Exception):
    """A business rule that fails after the event was published."""


@dataclass
class Writers:
    """Concurrent transactions that change an aggregate and publish the change, and their outcomes."""

    bench: Bench
    database: Database
    committed: dict[UUID, Ticked] = field(default_factory=dict)
    undone: set[UUID] = field(default_factory=set)

    @property
    def units(self) -> UnitOfWorkFactory:
        settings, limit = OutboxSettings(), self.bench.settings.kafka_max_message_bytes
        return UnitOfWorkFactory(
            self.database.sessions,
            lambda session: OutboxPublisher(
                session, self.bench.registry, settings, limit, WakeUp()
            ),
        )

    async def write(self, name: str, undo: bool = False) -> Ticked:
        """Change `name` once; other writers of that name wait for the row."""
        async with self.units.begin() as uow:
            event = await self._change(name, uow)
            if undo:
                self.undone.add(event.event_id)
                raise Undone
        self.committed[event.event_id] = event
        return event

    async def _change(self, name: str, uow: UnitOfWork) -> Ticked:
        number = await uow.session.scalar(TOUCH, {"name": name})
        event = Ticked(name=name, number=int(number or 0))
        await uow.events.publish(event)
        return event

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write during the block; one transaction in ten is rolled back."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write_until(stop))
            try:
                yield
            finally:
                stop.set()

    async def _write_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(Undone):
                await self.write(f"key-{random.randrange(KEYS)}", undo=random.random() < 0.1)
            await asyncio.sleep(0.005)

    async def progress(self, count: int = 200) -> None:
        """Wait until so many more are committed."""
        enough = len(self.committed) + count
        await eventually(lambda: asyncio.sleep(0, len(self.committed) >= enough), seconds=120)

    # Looking

    async def waiting(self) -> int:
        return await rows_of(self.bench)

    async def sent(self) -> list[Ticked]:
        """Return the messages of the topic, in order by partition, with repetitions."""
        async with reading(self.bench.settings, [self.bench.topic]) as client:
            records = [record async for record in read_to_end(client)]
        records.sort(key=lambda record: (record.partition, record.offset))
        return [Ticked.model_validate_json(record.value or b"") for record in records]

    async def repeated(self) -> int:
        """Count the messages on the topic that were there before."""
        ids = [event.event_id for event in await self.sent()]
        return len(ids) - len(set(ids))

    async def settled(self, seconds: float = 60) -> None:
        """Wait until the outbox is empty and every committed event has had its effect."""
        await eventually(self.waiting, lambda rows: rows == 0, seconds)

        async def missing() -> int:
            applied = {effect.event_id for effect in await self.bench.effects("single")}
            return len(self.committed.keys() - applied)

        await eventually(missing, lambda count: count == 0, seconds)

    async def check(self) -> None:
        """Check that every committed event was sent, in order by key, and none that was rolled back;
        and that each has had its effect exactly once."""
        sent = await self.sent()
        ids = {event.event_id for event in sent}
        lost = self.committed.keys() - ids
        assert not lost, f"{len(lost)} committed events lost"
        assert not ids & self.undone, "events of transactions that were rolled back"
        assert ids == self.committed.keys(), "events that nobody committed"
        first = list({event.event_id: event for event in sent}.values())
        assert late(first) == [], "order by key not kept"
        effects = await self.bench.effects("single")
        assert sorted(e.event_id for e in effects) == sorted(ids), "effects not exactly once"
        assert out_of_order(effects) == [], "order of the effects not kept"


async def rows_of(bench: Bench) -> int:
    """Count the rows of the outbox."""
    return int((await bench.query("SELECT count(*) FROM outbox"))[0][0])


def late(events: list[Ticked]) -> list[tuple[str, int, int]]:
    last: dict[str, int] = {}
    found = []
    for event in events:
        if event.number <= last.get(event.name, 0):
            found.append((event.name, last[event.name], event.number))
        last[event.name] = event.number
    return found


@asynccontextmanager
async def writers_of(bench_of: MakeBench, **environment: str) -> AsyncIterator[Writers]:
    logs.configure("WARNING", "json")  # the writers' own: they run in this process
    bench = await bench_of("single", **environment)
    await bench.query(AGGREGATES)
    database = Database(DatabaseSettings(database_url=SecretStr(bench.database_url)))
    try:
        yield Writers(bench, database)
    finally:
        await database.close()


async def test_relays_killed_at_random_lose_nothing(bench_of: MakeBench) -> None:
    """Many writers, three relays, each of which is SIGKILLed and replaced several times."""
    async with writers_of(bench_of, OUTBOX_BATCH_ROWS=str(BATCH)) as writers:
        writers.bench.worker()
        relays = [writers.bench.relay(f"relay-{n}") for n in range(3)]
        await asyncio.gather(*(running.is_ready() for running in relays))
        async with writers.writing():
            await writers.progress(500)
            assert await writers.repeated() == 0, "two relays sent the same"
            for number in range(KILLS):
                await asyncio.sleep(random.uniform(0.2, 1.2))
                relays[number % 3].kill()
                relays[number % 3] = writers.bench.relay(f"relay-{number + 3}")
            await writers.progress(1000)
        await writers.settled()
        await writers.check()
        # At most the batch in flight of each killed relay is sent a second time.
        assert await writers.repeated() <= KILLS * BATCH * TASKS


async def test_events_wait_while_the_broker_is_away(
    bench_of: MakeBench, kafka: KafkaCluster
) -> None:
    """The broker does not answer for a while: no attempt is counted, no transaction stays open."""
    async with writers_of(bench_of, KAFKA_SEND_TIMEOUT_SECONDS="2") as writers:
        writers.bench.worker()
        running = writers.bench.relay("relay")
        await running.is_ready()
        async with writers.writing():
            await writers.progress()
            kafka.suspend()
            try:
                await asyncio.sleep(10)
                # Batches in flight at the freeze have been given back by now.
                open_ones = await writers.bench.query(
                    f"SELECT count(*) FROM pg_stat_activity {OTHER_BACKENDS}"
                    " AND state LIKE 'idle in%' AND now() - xact_start > interval '9 s'"
                )
                assert open_ones[0][0] == 0, "a transaction stays open during the outage"
                parked = await writers.bench.query("SELECT count(*) FROM outbox_parked")
                assert parked[0][0] == 0, f"the outage had {parked[0][0]} events parked"
                counted = await writers.bench.query("SELECT max(attempts) FROM outbox")
                assert counted[0][0] == 0, "the outage was counted as an attempt"
                status, said = await running.readiness()
                assert status == 503
                assert said["checks"]["relay"] != "ok"
            finally:
                kafka.resume()
            await writers.progress()
        await writers.settled()
        await writers.check()
        assert (await writers.bench.query("SELECT count(*) FROM outbox_parked"))[0][0] == 0


async def test_connections_cut_while_sends_are_in_flight(bench_of: MakeBench) -> None:
    """Every connection of the relays is cut again and again; their next transactions go on."""
    async with writers_of(bench_of, OUTBOX_BATCH_ROWS="20") as writers:
        writers.bench.worker()
        relays = [writers.bench.relay(f"relay-{n}") for n in range(2)]
        await asyncio.gather(*(running.is_ready() for running in relays))
        cut = looked = 0
        async with writers.writing():
            # A relay's transactions last a few milliseconds, so many queries find none.
            while cut < CUTS and looked < 2_000:
                looked += 1
                rows = await writers.bench.query(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity {OTHER_BACKENDS}"
                    " AND query LIKE '%outbox%' AND query NOT LIKE '%INSERT INTO outbox%'"
                    " AND query NOT LIKE '%aggregates%' AND state <> 'idle'"
                )
                cut += len(rows)
                await asyncio.sleep(0.25 if rows else 0.005)
        assert cut >= CUTS, f"only {cut} transactions of relays were met"
        assert all(running.running for running in relays)
        await writers.settled()
        await writers.check()


async def test_a_relay_frozen_beyond_its_deadline(bench_of: MakeBench) -> None:
    """SIGSTOP in the middle of a batch: others take over its buckets, and it recovers."""
    async with writers_of(
        bench_of, KAFKA_SEND_TIMEOUT_SECONDS="1", OUTBOX_BATCH_ROWS="20"
    ) as writers:
        writers.bench.worker()
        frozen, other = writers.bench.relay("frozen"), writers.bench.relay("other")
        await asyncio.gather(frozen.is_ready(), other.is_ready())
        async with writers.writing():
            await writers.progress()
            await freeze_in_a_transaction(writers.bench, frozen)
        # After the server has disconnected it, the other relay empties its buckets.
        none_waits = "no event waits in the buckets of the frozen relay"
        await eventually(writers.waiting, lambda rows: rows == 0, 30, what=none_waits)
        frozen.resume()
        async with writers.writing():
            await writers.progress()
        await writers.settled()
        await writers.check()
        await frozen.is_ready()
        other.kill()
        await writers.write("key-0")
        await writers.settled()


async def freeze_in_a_transaction(bench: Bench, process: Process) -> None:
    """SIGSTOP until it is caught between lock and commit."""
    stuck = (
        "SELECT count(*) FROM pg_stat_activity JOIN pg_locks USING (pid)"
        " WHERE relation = 'outbox_buckets'::regclass AND mode = 'RowShareLock'"
        " AND state = 'idle in transaction' AND now() - state_change > interval '250 ms'"
    )
    for _ in range(200):
        process.suspend()
        await asyncio.sleep(0.3)
        if (await bench.query(stuck))[0][0]:
            return
        process.resume()
        await asyncio.sleep(random.uniform(0, 0.02))
    raise AssertionError("the relay was never caught in a transaction")


async def test_a_stopped_relay_leaves_nothing_half_done(bench_of: MakeBench) -> None:
    """SIGTERM under load, several times: exit code 0 within the deadline, and nothing sent twice."""
    async with writers_of(bench_of, OUTBOX_BATCH_ROWS=str(BATCH)) as writers:
        writers.bench.worker()
        async with writers.writing():
            for number in range(4):
                await writers.progress(500)
                many = await writers.waiting()
                running = writers.bench.relay(f"relay-{number}")
                # In the middle of the backlog.
                await eventually(writers.waiting, partial(gt, many * 0.8))
                running.terminate()
                assert await running.exit_code(DRAIN_SECONDS + 5) == 0
                assert running.strays() == []
                assert running.logged("batch cancelled, its rows will be sent again") == []
        last = writers.bench.relay("last")
        await writers.settled()
        await writers.check()
        assert await writers.repeated() == 0
        assert last.running


async def test_an_api_killed_after_its_commits_loses_no_event(bench_of: MakeBench) -> None:
    """SIGKILL the API during requests: each stored user has exactly one event."""
    bench = await bench_of("", topics=False)
    bench.app("topics", "create")
    users = 0
    for number in range(3):
        api = bench.api(f"api-{number}")
        await api.is_ready()
        users = await sign_up_until_killed(api, users)
    running = bench.relay("relay")
    await running.is_ready()
    await eventually(lambda: rows_of(bench), lambda rows: rows == 0)
    stored = {row["id"] for row in await bench.query("SELECT id FROM users")}
    topic = f"{bench.settings.kafka_client_id}.user.created"
    keys = [int(record.key or b"0") for record in await bench.records(topic)]
    assert sorted(keys) == sorted(stored)
    assert users > 0


async def sign_up_until_killed(api: Process, users: int) -> int:
    async with httpx.AsyncClient(base_url=api.url, timeout=10) as http:
        # Many at once, so that some are between their commit and their answer at the kill.
        tasks = [asyncio.create_task(sign_up(http, users)) for _ in range(16)]
        await asyncio.sleep(random.uniform(0.5, 1.5))
        api.kill()
        return users + sum(await asyncio.gather(*tasks))


async def sign_up(http: httpx.AsyncClient, first: int) -> int:
    """Sign up users until the API is dead; return the number of answers."""
    done = 0
    while True:
        name = f"user{first + done}x{random.randrange(10**9)}"
        try:
            answer = await http.post(
                "/users", json={"email": f"{name}@example.com", "username": name}
            )
        except httpx.TransportError:
            return done
        assert answer.status_code == 201, answer.text
        done += 1
