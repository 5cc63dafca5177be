"""From a request until the effect of its event's handler: `POST /users` until the profile is committed.

The processes are those of the service as its commands start them, with a database and topics of their
own: `app api` and `app worker`, and `app relay` with the outbox. One client sends 20 requests a second,
each when it is due; the time counts from then.

- *base*: the event goes to Kafka after the commit, and the answer waits for it. *outbox*: it is a row of
  the transaction, which NOTIFY tells the relay.
- *answered*: until the client has the answer.
- *effect*: until the profile, which the consumer of `user.created` writes, can be read by others. A
  trigger notifies the benchmark, in the handler's own transaction.
- *floor*: a commit of one row, a message from aiokafka's producer to its waiting consumer (acks=all),
  and another commit, one after the other in one process, by hand, at the same rate.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from harness import APP, Counted, Side, Stage, process, run, until_ready
from orders import own_servers, run_command
from results import Area, Comparison

from app.platform.events.event import EventType

RATE = 20
WARM_UP = 20
VALUE = "x" * 300  # about the size of the event
FLOOR = "floor: commit, round trip, commit"
ROLES = {"base": ["api", "worker"], "outbox": ["api", "worker", "relay"]}
CHANNEL = "profiles"
TELL = f"""
    CREATE FUNCTION tell_of_profile() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_notify('{CHANNEL}', NEW.user_id::text); RETURN NULL; END $$;
    CREATE TRIGGER tell_of_profile AFTER INSERT ON profiles
        FOR EACH ROW EXECUTE FUNCTION tell_of_profile();
"""
FLOOR_TABLE = "CREATE TABLE floor_rows (id bigserial PRIMARY KEY, value text)"
FLOOR_ROW = "INSERT INTO floor_rows (value) VALUES ($1)"

Ask = Callable[[int], Awaitable[None]]


async def at_a_rate(count: int, ask: Ask) -> list[float]:
    """Call `ask` when it is due, one after the other; return when each was due."""
    begun, due = time.perf_counter(), list[float]()
    for number in range(count):
        due.append(begun + number / RATE)
        await asyncio.sleep(max(0.0, due[-1] - time.perf_counter()))
        await ask(number)
    return due


def steps(what: str, due: Sequence[float], done: Sequence[float]) -> dict[str, float]:
    waits = (1000 * (end - begin) for begin, end in zip(due, done, strict=True))
    found = statistics.quantiles(waits, n=100, method="inclusive")
    return {f"{what}, p50": found[49], f"{what}, p99": found[98]}


class Effects:
    """The profiles of one database, by the time when each could be read."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self._told = asyncio.Event()

    @asynccontextmanager
    async def watching(self, url: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(TELL)
            await connection.add_listener(CHANNEL, self._tell)
            yield
        finally:
            await connection.close()

    async def until_seen(self, users: list[int]) -> list[float]:
        while not self.seen.keys() >= set(users):
            self._told.clear()
            await self._told.wait()
        return [self.seen[user] for user in users]

    def _tell(self, *notification: object) -> None:
        self.seen[int(str(notification[-1]))] = time.perf_counter()
        self._told.set()


class Client:
    """One connection to `app api`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.users: list[int] = []
        self.answered: list[float] = []

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Ask]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def sign_up(number: int) -> None:
            writer.write(request(f"user-{time.time_ns()}"))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert head.startswith(b"http/1.1 201"), body
            self.answered.append(time.perf_counter())
            self.users.append(json.loads(body)["id"])

        try:
            yield sign_up
        finally:
            writer.close()


def request(name: str) -> bytes:
    body = json.dumps({"email": f"{name}@example.com", "username": name}).encode()
    head = f"POST /users HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


Measure = Callable[[int], Awaitable[dict[str, float]]]


@asynccontextmanager
async def deployed(stage: Stage, variant: str) -> AsyncIterator[Measure]:
    """Run the processes of a variant, each kind once."""
    environment = await own_servers(stage, variant)
    await run_command(variant, environment, "topics", "create")
    effects = Effects()
    async with AsyncExitStack() as stack:
        started = {
            role: await stack.enter_async_context(process(stage, *APP, role, **environment))
            for role in ROLES[variant]
        }
        await until_ready(*started.values())
        await stack.enter_async_context(effects.watching(environment["DATABASE_URL"]))

        async def measure(count: int) -> dict[str, float]:
            client = Client(started["api"].port)
            async with client.connected() as sign_up:
                due = await at_a_rate(count, sign_up)
            seen = await effects.until_seen(client.users)
            return steps("answered", due, client.answered) | steps("effect", due, seen)

        yield measure


@asynccontextmanager
async def by_hand(stage: Stage) -> AsyncIterator[Measure]:
    """Commit, send, fetch and commit, with clients that have the options of the service's."""
    await stage.connection.execute(FLOOR_TABLE)
    settings, registry = await stage.topics([EventType(Counted)])
    servers, topic = settings.kafka_bootstrap_servers, registry.topic(Counted)
    producer = AIOKafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True, compression_type="lz4"
    )
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed")
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])

    async def measure(count: int) -> dict[str, float]:
        done = list[float]()

        async def once(_number: int) -> None:
            await stage.connection.execute(FLOOR_ROW, VALUE)
            fetched = asyncio.create_task(consumer.getone())
            await producer.send_and_wait(topic, VALUE.encode(), partition=0)
            await fetched
            await stage.connection.execute(FLOOR_ROW, VALUE)
            done.append(time.perf_counter())

        due = await at_a_rate(count, once)
        return steps("effect", due, done)

    try:
        yield measure
    finally:
        await consumer.stop()
        await producer.stop()


@asynccontextmanager
async def plan(stage: Stage, scale: float) -> AsyncIterator[list[Side]]:
    count = max(40, int(300 * scale))
    async with AsyncExitStack() as stack:
        ways = {name: await stack.enter_async_context(deployed(stage, name)) for name in ROLES}
        ways[FLOOR] = await stack.enter_async_context(by_hand(stage))
        for measure in ways.values():  # the first requests build statements
            await measure(WARM_UP)
        yield [Side(name, "ms", bound(measure, count)) for name, measure in ways.items()]


def bound(measure: Measure, count: int) -> Callable[[], Awaitable[dict[str, float]]]:
    return lambda: measure(count)


COMPARISONS = [
    Comparison(
        f"{variant}, {step}, beside the floor",
        f"{variant}, effect, {step}",
        f"{FLOOR}, effect, {step}",
        goal,
    )
    for step, goal in (("p50", "<= 3"), ("p99", ""))
    for variant in ROLES
]

if __name__ == "__main__":
    run(Area("effect", "From a request to its effect", __doc__ or "", COMPARISONS), plan)
