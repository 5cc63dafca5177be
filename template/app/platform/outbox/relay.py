"""The relay: batching, per-row outcomes and scheduling."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.platform.background import WakeUp
from app.platform.backoff import Backoff, wait_for_event
from app.platform.config import load
from app.platform.database.errors import is_unavailable, summary
from app.platform.health import Unhealthy
from app.platform.kafka.errors import BrokerUnavailable, SendError
from app.platform.kafka.producer import Outcome, Producer
from app.platform.kafka.spans import batch_span
from app.platform.outbox import monitor, store
from app.platform.outbox.batch import Batch, Unsendable
from app.platform.outbox.bucket_queue import BucketQueue
from app.platform.outbox.settings import OnPoison, OutboxSettings
from app.platform.outbox.transaction import PendingRow, RelayTransaction, transaction
from app.platform.outbox.wakeup import listening
from app.platform.runtime import Runtime

log = structlog.get_logger(__name__)

# A send may take its whole deadline; the statements before and after it are quick.
_MARGIN_SECONDS = 5.0
_STATEMENT_TIMEOUT_SECONDS = 10.0
# The pause between two looks for rows: the shortest, and the longest while rows keep coming that no
# commit named.
_MIN_LOOK_SECONDS = 0.01
_BUSY_LOOK_SECONDS = 0.05
# A look that takes long shows a busy process or database: after a longer pause, one finds more.
_PAUSE_PER_LOOK_TIME = 5
# The rest of a task after a batch, as a share of the time that it took, and the longest: the busier a
# process is, the more commits share a batch.
_REST_PER_BATCH_TIME = 1.0
_MAX_REST_SECONDS = 0.05
_OUTAGE_BACKOFF = (0.1, 5.0)
_TOPIC_BACKOFF = (0.2, 5.0)


class Relay:
    """A finder of buckets with rows, and tasks that send the rows.

    A commit names its buckets. Looking for others finds what no commit named: rows of a process that
    died after the commit, or whose notification was lost.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        producer: Producer,
        settings: OutboxSettings,
        send_timeout: float,
        published: WakeUp,
    ) -> None:
        self._engine = engine
        self._producer = producer
        self._settings = settings
        self._send_seconds = send_timeout + _MARGIN_SECONDS
        self._published = published
        self._stopping = asyncio.Event()
        self._queue = BucketQueue(settings.outbox_relay_tasks)
        self._known: set[int] = set()  # the buckets that can be locked
        self._made_progress = False  # since the last look, as the next two
        self._named = False
        self._contended = False
        self._topics = _FailingTopics()
        self._broker_unavailable = False
        self._broker_backoff = _outage_backoff()
        self._broker_check = asyncio.Lock()
        self.problem: str | None = None

    @asynccontextmanager
    async def running(self, stop_seconds: float) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Send during the block; then finish the batches in flight, or cancel them."""
        finder = asyncio.create_task(self._find_forever(), name="outbox-finder")
        senders = [
            asyncio.create_task(self._send_forever(), name=f"outbox-relay-{number}")
            for number in range(self._settings.outbox_relay_tasks)
        ]
        try:
            yield [finder, *senders]
        finally:
            self._stopping.set()
            finder.cancel()
            self._queue.close()
            _, late = await asyncio.wait(senders, timeout=stop_seconds)
            for task in late:
                log.warning("batch cancelled, its rows will be sent again", task=task.get_name())
                task.cancel()
            await asyncio.gather(finder, *senders, return_exceptions=True)

    # Finding work

    async def _find_forever(self) -> None:
        longest = self._settings.outbox_poll_seconds
        pause, backoff = longest, _outage_backoff()
        while True:
            contended, unnamed = self._contended, self._made_progress and not self._named
            self._contended = self._made_progress = self._named = False
            started = time.perf_counter()
            try:
                await self._look()
            except Exception as error:  # whatever the reason: nothing else finds the rows
                await self._wait_for_database(error, backoff)
                continue
            self._database_answered(backoff)
            # While known buckets are queued, new ones can wait a little.
            quick = contended or (unnamed and self._queue.is_empty)
            pause = min(_BUSY_LOOK_SECONDS if quick else pause * 2, longest)
            rest = _PAUSE_PER_LOOK_TIME * (time.perf_counter() - started)
            rest = min(max(rest, _MIN_LOOK_SECONDS), _BUSY_LOOK_SECONDS)
            await self._queue_named(rest, max(rest, pause * random.uniform(0.5, 1.0)))

    async def _look(self) -> None:
        if self._broker_unavailable:
            return
        async with (
            asyncio.timeout(_STATEMENT_TIMEOUT_SECONDS),
            transaction(
                self._engine, _STATEMENT_TIMEOUT_SECONDS, _STATEMENT_TIMEOUT_SECONDS
            ) as opened,
        ):
            if not self._known:
                self._known.update(await store.known_buckets(opened.connection))
            found = await store.waiting_buckets(opened.connection)
        self._known.update(found)
        if not found and not self._broker_unavailable:
            self.problem = None  # another relay has sent the rows
        self._queue.add(found)

    async def _queue_named(self, rest: float, pause: float) -> None:
        """Queue the buckets that commits name, until it is time to look again.

        That is after `pause`, or after `rest` if an unknown bucket may have rows.
        """
        now = asyncio.get_running_loop().time
        rested, until = now() + rest, now() + pause
        while (left := until - now()) > 0 and await wait_for_event(self._published, left):
            named = self._published.take()
            if named is None or not named <= self._known:
                until = min(until, rested)
            elif not self._broker_unavailable:
                self._named = True
                self._queue.add(named)

    # Sending

    async def _send_forever(self) -> None:
        backoff = _outage_backoff()
        while not self._stopping.is_set():
            buckets = await self._queue.take()
            if not buckets:
                return
            unfinished: set[int] = set()
            started = time.perf_counter()
            try:
                unfinished = await self._relay_batch(buckets)
                self._database_answered(backoff)
            except Exception as error:  # the batch was rolled back, so nothing is lost
                await self._wait_for_database(error, backoff)
            finally:
                self._queue.release(buckets, unfinished)
            await self._wait_for_broker()
            if not unfinished and not self._queue.exceeds_a_batch:
                rest = _REST_PER_BATCH_TIME * (time.perf_counter() - started)
                await wait_for_event(self._stopping, min(rest, _MAX_REST_SECONDS))

    async def _relay_batch(self, buckets: Sequence[int]) -> set[int]:
        """Send the oldest rows of these buckets; return the buckets that may have more."""
        started = time.perf_counter()
        limit = max(1, self._settings.outbox_batch_rows // len(buckets))
        size = max(1, self._settings.outbox_batch_bytes // len(buckets))
        # The server disconnects a relay that is frozen in its transaction, and others take over. When
        # it continues, its transaction is gone, so it cannot delete anything.
        idle = self._send_seconds + _MARGIN_SECONDS
        async with (
            asyncio.timeout(self._send_seconds + 2 * _MARGIN_SECONDS),
            transaction(self._engine, _STATEMENT_TIMEOUT_SECONDS, idle, buckets) as opened,
        ):
            rows = await self._read_rows(opened, limit, size)
            batch = Batch(rows, self._settings.outbox_max_attempts)
            with batch_span("relay batch", (row.message.headers for row in rows)):
                await self._send(batch)
                await self._apply_outcomes(opened, batch)
        if rows:
            self._report(batch, time.perf_counter() - started)
        if batch.outage:
            return set()
        # From now on the rows of a failing topic are skipped, and those behind them are the oldest.
        behind = {row.bucket for row in rows if row.message.topic in batch.failing_topics}
        return behind | _full_buckets(rows, limit, size) if batch.made_progress else behind

    async def _read_rows(
        self, opened: RelayTransaction, limit: int, size: int
    ) -> Sequence[PendingRow]:
        skipped = self._topics.backing_off()
        locked, rows, any_parked = await opened.oldest_rows(limit, size, skipped)
        if self._named and len(locked) < len(opened.buckets):
            # The relay that has the others may have read their rows before the newest one.
            self._contended = True
            self._published.set()
        if not any_parked or self._settings.outbox_on_poison is not OnPoison.BLOCK:
            return rows
        parked = await store.parked_keys(opened.connection, rows)
        blocked = {
            row.id: "an earlier event of its key is parked"
            for row in rows
            if row.order_key in parked
        }
        if blocked:
            await store.park(opened.connection, blocked, blocked=True)
            self._made_progress = True
        return [row for row in rows if row.id not in blocked]

    async def _send(self, batch: Batch) -> None:
        until = asyncio.get_running_loop().time() + self._send_seconds
        while wave := batch.next_wave():
            try:
                batch.record(wave, await self._send_wave(wave, until))
            except Exception as error:
                log.exception("client failed to send", rows=len(wave))
                if len(wave) > 1:
                    batch.send_singly(wave)
                else:
                    batch.record(wave, [Unsendable(f"{type(error).__name__}: {error}")])

    async def _send_wave(self, wave: Sequence[PendingRow], until: float) -> Sequence[Outcome]:
        try:
            async with asyncio.timeout_at(until):
                return await self._producer.send_all([row.message for row in wave])
        except TimeoutError:
            late = BrokerUnavailable(f"no broker answered within {self._send_seconds:g} s")
            return [late] * len(wave)

    async def _apply_outcomes(self, opened: RelayTransaction, batch: Batch) -> None:
        opened.delete([row.id for row in batch.sent])
        if batch.unsendable:
            await store.park(opened.connection, batch.unsendable)
        if batch.attempted:
            await store.count_attempt(opened.connection, [row.id for row in batch.attempted])

    def _report(self, batch: Batch, seconds: float) -> None:
        monitor.batch_size.observe(len(batch.rows))
        monitor.batch_time.observe(seconds)
        for topic, count in Counter(row.message.topic for row in batch.sent).items():
            monitor.relayed.labels(topic).inc(count)
            self._topics.sent(topic)
        for topic in batch.failing_topics:
            self._topics.failed(topic)
        for row in batch.rows:
            if row.id in batch.unsendable:
                _report_parked(row, batch.unsendable[row.id])
        self._made_progress = self._made_progress or batch.made_progress
        if batch.sent:
            self._broker_backoff.reset()
        if batch.outage is not None:
            self._broker_failed(batch.outage)
        elif batch.sent:
            self.problem = None

    # Waiting

    def _broker_failed(self, error: SendError) -> None:
        if not self._broker_unavailable:
            monitor.outages.labels("broker").inc()
            log.warning("broker unavailable, events wait in the outbox", reason=str(error))
        self._broker_unavailable = True
        self.problem = str(error)

    async def _wait_for_broker(self) -> None:
        """Wait outside a transaction: an open one would lock its bucket and hold back vacuum."""
        async with self._broker_check:
            while self._broker_unavailable and not self._stopping.is_set():
                await self._broker_backoff.pause(self._stopping)
                try:
                    await self._producer.ping()
                except SendError as error:
                    self.problem = str(error)
                else:
                    self._broker_unavailable = False
                    self._published.set()

    async def _wait_for_database(self, error: Exception, backoff: Backoff) -> None:
        reason = summary(error)
        if is_unavailable(error) or isinstance(error, TimeoutError):
            if self.problem != reason:
                log.warning("database unavailable, the relay waits", reason=reason)
        else:
            log.exception("relay failed, trying again")
        self.problem = reason
        monitor.outages.labels("database").inc()
        await backoff.pause(self._stopping)

    def _database_answered(self, backoff: Backoff) -> None:
        if backoff.reset() and not self._broker_unavailable:
            self.problem = None  # also when there is nothing to send


def _outage_backoff() -> Backoff:
    return Backoff(*_OUTAGE_BACKOFF, jitter=0.5)


class _FailingTopics:
    """Topics that took nothing. Each is skipped until its next attempt is due; others continue.

    The rows of a failing topic stay where they are, and no attempt is counted.
    """

    def __init__(self) -> None:
        self._backoffs: dict[str, Backoff] = {}
        self._until: dict[str, float] = {}

    def failed(self, topic: str) -> None:
        backoff = self._backoffs.setdefault(topic, Backoff(*_TOPIC_BACKOFF))
        self._until[topic] = time.monotonic() + backoff.next()
        monitor.failures.labels(topic).inc()

    def sent(self, topic: str) -> None:
        self._backoffs.pop(topic, None)
        self._until.pop(topic, None)

    def backing_off(self) -> list[str]:
        now = time.monotonic()
        return [topic for topic, until in self._until.items() if until > now]


def _full_buckets(rows: Sequence[PendingRow], limit: int, size: int) -> set[int]:
    """Return the buckets whose rows did not all fit into the batch."""
    counts = Counter(row.bucket for row in rows)
    sizes: Counter[int] = Counter()
    for row in rows:
        sizes[row.bucket] += len(row.message.value or b"")
    return {b for b in counts if counts[b] >= limit or sizes[b] >= size}


def _report_parked(row: PendingRow, reason: str) -> None:
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
    """Send the outbox's rows during the block."""
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
            if relay.problem is not None:
                raise Unhealthy(relay.problem)

        runtime.health.add_liveness_check("relay", live)
        runtime.health.add_readiness_check("relay", ready)
        yield
