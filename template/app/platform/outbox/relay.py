"""The relay: what of a batch goes out together, what becomes of each row, and who sends it when."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.platform.backoff import Backoff, wait_for_event
from app.platform.config import load
from app.platform.database.errors import is_unavailable, summary
from app.platform.health import Unhealthy
from app.platform.kafka.errors import BrokerUnavailable, SendError
from app.platform.kafka.producer import Outcome, Producer
from app.platform.outbox import monitor, store
from app.platform.outbox.batch import Batch, Unsendable
from app.platform.outbox.model import division_of
from app.platform.outbox.settings import OnPoison, OutboxSettings
from app.platform.outbox.store import Pending
from app.platform.outbox.wakeup import listening
from app.platform.runtime import Runtime

log = structlog.get_logger(__name__)

# A send may take its whole deadline; what the database does around it is quick.
_MARGIN_SECONDS = 5.0
_STATEMENT_SECONDS = 10.0
# How often the buckets are looked through: at most, and while rows keep coming.
_SHORTEST_SECONDS = 0.01
_BUSY_SECONDS = 0.05
# The longer a look takes, the busier is the process or the database: more commits share a batch.
_REST_PER_LOOK = 5
_OUTAGE_SECONDS = (0.1, 5.0)
_TOPIC_SECONDS = (0.2, 5.0)
_BUCKETS_AT_ONCE = 8


class Relay:
    """One look-out, which finds buckets with rows, and tasks that send them."""

    def __init__(
        self,
        engine: AsyncEngine,
        producer: Producer,
        settings: OutboxSettings,
        send_timeout: float,
        published: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._producer = producer
        self._settings = settings
        self._send_seconds = send_timeout + _MARGIN_SECONDS
        self._published = published
        self._stopping = asyncio.Event()
        self._queue: asyncio.Queue[int | None] = asyncio.Queue()
        self._taken: set[int] = set()  # in the queue or being sent
        self._again: set[int] = set()  # found to have rows while it was being sent
        self._moved = False
        self._topics = _RestingTopics()
        self._broker_away = False
        self._asking = asyncio.Lock()
        self._broker_backoff = _outage_backoff()
        self.trouble: str | None = None

    @asynccontextmanager
    async def running(self, stop_seconds: float) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Send for the length of the block; then finish the batches in flight, or cancel them."""
        look_out = asyncio.create_task(self._look_out(), name="outbox-look-out")
        workers = [
            asyncio.create_task(self._work(), name=f"outbox-relay-{number}")
            for number in range(self._settings.outbox_relay_tasks)
        ]
        try:
            yield [look_out, *workers]
        finally:
            self._stopping.set()
            look_out.cancel()
            for _ in workers:
                self._queue.put_nowait(None)
            _, late = await asyncio.wait(workers, timeout=stop_seconds)
            for task in late:
                log.warning("batch given up: its rows are sent again later", task=task.get_name())
                task.cancel()
            await asyncio.gather(look_out, *workers, return_exceptions=True)

    # Finding work

    async def _look_out(self) -> None:
        longest = self._settings.outbox_poll_seconds
        pause, backoff = longest, _outage_backoff()
        while True:
            self._published.clear()
            moved, self._moved = self._moved, False
            started = time.perf_counter()
            try:
                await self._look()
            except Exception as error:  # it goes on, whatever it was: nothing else finds the rows
                await self._database_trouble(error, backoff)
                continue
            self._database_answers(backoff)
            # While there is a queue of known buckets, new ones can wait a little.
            pause = _BUSY_SECONDS if moved and self._queue.empty() else pause * 2
            pause = min(pause, longest)
            rest = _REST_PER_LOOK * (time.perf_counter() - started)
            await asyncio.sleep(min(max(rest, _SHORTEST_SECONDS), _BUSY_SECONDS))
            await wait_for_event(self._published, pause * random.uniform(0.5, 1.0))

    async def _look(self) -> None:
        if self._broker_away:
            return
        async with asyncio.timeout(_STATEMENT_SECONDS), self._engine.begin() as connection:
            await store.limit_transaction(connection, _STATEMENT_SECONDS, _STATEMENT_SECONDS)
            found = await store.waiting_buckets(connection)
        if not found and not self._broker_away:
            self.trouble = None  # another relay has sent what waited
        random.shuffle(found)
        for bucket in found:
            if bucket in self._taken:
                self._again.add(bucket)
            else:
                self._taken.add(bucket)
                self._queue.put_nowait(bucket)

    async def _take(self) -> list[int]:
        """A fair share of the buckets that wait, of one division; none when it is time to stop."""
        bucket = await self._queue.get()
        buckets: list[int] = []
        share = min(_BUCKETS_AT_ONCE, 1 + self._queue.qsize() // self._settings.outbox_relay_tasks)
        while bucket is not None:
            buckets.append(bucket)
            if len(buckets) == share or self._queue.empty():
                return buckets
            bucket = self._queue.get_nowait()
            if bucket is None or division_of(bucket) != division_of(buckets[0]):
                self._queue.put_nowait(bucket)
                return buckets
        return buckets

    def _give_back(self, buckets: Sequence[int], more: set[int]) -> None:
        for bucket in buckets:
            if bucket in more or bucket in self._again:
                self._again.discard(bucket)
                self._queue.put_nowait(bucket)  # at the end: a busy bucket does not starve others
            else:
                self._taken.discard(bucket)

    # Sending

    async def _work(self) -> None:
        backoff = _outage_backoff()
        while not self._stopping.is_set():
            buckets = await self._take()
            if not buckets:
                return
            more: set[int] = set()
            try:
                more = await self._relay(buckets)
                self._database_answers(backoff)
            except Exception as error:  # the batch was rolled back, so nothing is lost
                await self._database_trouble(error, backoff)
            finally:
                self._give_back(buckets, more)
            await self._until_broker_answers()

    async def _relay(self, buckets: Sequence[int]) -> set[int]:
        """Send the oldest rows of these buckets; those of which there may be more."""
        started = time.perf_counter()
        limit = max(1, self._settings.outbox_batch_rows // len(buckets))
        size = max(1, self._settings.outbox_batch_bytes // len(buckets))
        async with asyncio.timeout(self._send_seconds + 2 * _MARGIN_SECONDS):
            async with self._engine.begin() as connection:
                # The server hangs up on a relay that is frozen in its transaction, and others take
                # over. When it wakes up, its transaction is gone: it cannot delete any more.
                await store.limit_transaction(
                    connection, _STATEMENT_SECONDS, self._send_seconds + _MARGIN_SECONDS
                )
                locked = await store.lock(connection, buckets)
                if not locked:
                    return set()
                rows = await self._rows(connection, locked, limit, size)
                batch = Batch(rows, self._settings.outbox_max_attempts)
                await self._send(batch)
                await self._settle(connection, batch)
        if rows:
            self._count(batch, time.perf_counter() - started)
        if batch.outage:
            return set()
        # Without the rows of a topic that rests from now on, those behind them are the oldest.
        behind = {row.bucket for row in rows if row.message.topic in batch.topics_in_trouble}
        return behind | _full(rows, limit, size) if batch.moved else behind

    async def _rows(
        self, connection: AsyncConnection, buckets: Sequence[int], limit: int, size: int
    ) -> list[Pending]:
        resting = self._topics.resting()
        rows, any_parked = await store.oldest(connection, buckets, limit, size, resting)
        if not any_parked or self._settings.outbox_on_poison is not OnPoison.BLOCK:
            return rows
        blocked = await store.parked_keys(connection, rows)
        held = {
            row.id: "an earlier event of its key is parked"
            for row in rows
            if row.order_key in blocked
        }
        if held:
            await store.park(connection, held, held=True)
            self._moved = True
        return [row for row in rows if row.id not in held]

    async def _send(self, batch: Batch) -> None:
        until = asyncio.get_running_loop().time() + self._send_seconds
        while wave := batch.next_wave():
            try:
                batch.settle(wave, await self._send_wave(wave, until))
            except Exception as error:
                log.exception("the client failed at a message", rows=len(wave))
                if len(wave) > 1:
                    batch.one_by_one(wave)
                else:
                    batch.settle(wave, [Unsendable(f"{type(error).__name__}: {error}")])

    async def _send_wave(self, wave: Sequence[Pending], until: float) -> Sequence[Outcome]:
        try:
            async with asyncio.timeout_at(until):
                return await self._producer.send_all([row.message for row in wave])
        except TimeoutError:
            late = BrokerUnavailable(f"no broker answered within {self._send_seconds:g} s")
            return [late] * len(wave)

    async def _settle(self, connection: AsyncConnection, batch: Batch) -> None:
        if batch.sent:
            await store.delete_sent(connection, [row.id for row in batch.sent])
        if batch.hopeless:
            await store.park(connection, batch.hopeless)
        if batch.attempted:
            await store.count_attempt(connection, [row.id for row in batch.attempted])

    def _count(self, batch: Batch, seconds: float) -> None:
        monitor.batch_size.observe(len(batch.rows))
        monitor.batch_time.observe(seconds)
        for topic, count in Counter(row.message.topic for row in batch.sent).items():
            monitor.relayed.labels(topic).inc(count)
            self._topics.found(topic)
        for topic in batch.topics_in_trouble:
            self._topics.refused(topic)
        for row in batch.rows:
            if row.id in batch.hopeless:
                _report_parked(row, batch.hopeless[row.id])
        self._moved = self._moved or batch.moved
        if batch.sent:
            self._broker_backoff.reset()
        if batch.outage is not None:
            self._broker_trouble(batch.outage)
        elif batch.sent:
            self.trouble = None

    # Waiting

    def _broker_trouble(self, error: SendError) -> None:
        if not self._broker_away:
            monitor.outages.labels("broker").inc()
            log.warning("broker away, events wait in the outbox", reason=str(error))
        self._broker_away = True
        self.trouble = str(error)

    async def _until_broker_answers(self) -> None:
        """Wait without a transaction: it would hold its bucket, and the clean-up of all tables."""
        async with self._asking:
            while self._broker_away and not self._stopping.is_set():
                await self._broker_backoff.pause(self._stopping)
                try:
                    await self._producer.ping()
                except SendError as error:
                    self.trouble = str(error)
                else:
                    self._broker_away = False
                    self._published.set()

    async def _database_trouble(self, error: Exception, backoff: Backoff) -> None:
        reason = summary(error)
        if is_unavailable(error) or isinstance(error, TimeoutError):
            if self.trouble != reason:
                log.warning("the relay waits for the database", reason=reason)
        else:
            log.exception("relay failed, and goes on")
        self.trouble = reason
        monitor.outages.labels("database").inc()
        await backoff.pause(self._stopping)

    def _database_answers(self, backoff: Backoff) -> None:
        if backoff.reset() and not self._broker_away:
            self.trouble = None  # also when there is nothing to send


def _outage_backoff() -> Backoff:
    return Backoff(*_OUTAGE_SECONDS, jitter=0.5)


class _RestingTopics:
    """Topics that took nothing, and until when they are left alone: other topics go on meanwhile.

    The rows of such a topic stay where they are; nothing is counted against them.
    """

    def __init__(self) -> None:
        self._backoffs: dict[str, Backoff] = {}
        self._until: dict[str, float] = {}

    def refused(self, topic: str) -> None:
        backoff = self._backoffs.setdefault(topic, Backoff(*_TOPIC_SECONDS))
        self._until[topic] = time.monotonic() + backoff.next()
        monitor.failures.labels(topic).inc()

    def found(self, topic: str) -> None:
        self._backoffs.pop(topic, None)
        self._until.pop(topic, None)

    def resting(self) -> list[str]:
        now = time.monotonic()
        return [topic for topic, until in self._until.items() if until > now]


def _full(rows: Sequence[Pending], limit: int, size: int) -> set[int]:
    """The buckets whose rows did not all fit into the batch."""
    counts = Counter(row.bucket for row in rows)
    sizes: Counter[int] = Counter()
    for row in rows:
        sizes[row.bucket] += len(row.message.value or b"")
    return {b for b in counts if counts[b] >= limit or sizes[b] >= size}


def _report_parked(row: Pending, reason: str) -> None:
    monitor.failures.labels(row.message.topic).inc()
    log.error(
        "event parked",
        id=row.id,
        topic=row.message.topic,
        key=(row.message.key or b"").decode("utf-8", "replace"),
        reason=reason,
    )


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Send what is in the outbox for the length of the block."""
    settings, kafka = load(OutboxSettings), runtime.configuration.kafka
    engine, pooler = runtime.database.engine, runtime.configuration.database.database_pooler
    relay = Relay(
        engine, runtime.producer, settings, kafka.kafka_send_timeout_seconds, runtime.published
    )
    async with (
        nullcontext() if pooler else listening(engine, runtime.published),
        relay.running(kafka.kafka_drain_timeout_seconds) as tasks,
    ):

        async def live() -> None:
            for task in tasks:
                if task.done():
                    raise Unhealthy(f"{task.get_name()} has ended")

        async def ready() -> None:
            if relay.trouble is not None:
                raise Unhealthy(relay.trouble)

        runtime.health.add_liveness_check("relay", live)
        runtime.health.add_readiness_check("relay", ready)
        yield
