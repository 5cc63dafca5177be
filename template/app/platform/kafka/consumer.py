"""The consumer of one subscription: fetching, group membership, commits, and its end.

It runs for as long as the process: whatever Kafka or the database do, it waits and goes on.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka_errors

from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.kafka.admin import hidden_topics, not_authorized
from app.platform.kafka.metrics import ConsumerStatus, Draining, LagMeter, begin_at_zero
from app.platform.kafka.positions import Positions
from app.platform.kafka.processing import Processor
from app.platform.kafka.producer import Producer
from app.platform.kafka.progress import Progress
from app.platform.kafka.retry import due_at
from app.platform.kafka.settings import KafkaSettings, consumer_options, reason_for
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import is_delay_topic, origins

log = structlog.get_logger(__name__)

Batch = dict[TopicPartition, list[ConsumerRecord]]

FETCH_WAIT_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 3.0
LOOK_SECONDS = 1.0
COMMIT_TIMEOUT_SECONDS = 5.0
CLOSE_TIMEOUT_SECONDS = 5.0
RESTART_SECONDS = (0.2, 5.0)
COMMIT_AGAIN_SECONDS = (0.1, 5.0)


class TopicsMissing(Exception):
    """Topics of a subscription do not exist, or are `hidden` from the user."""

    def __init__(self, missing: list[str], hidden: list[str]) -> None:
        reasons = [not_authorized(hidden)] if hidden else []
        if missing:
            reasons.append(f"missing topics: {', '.join(missing)}; `app topics create` makes them")
        super().__init__("; ".join(reasons))


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Reads the topics of one subscription as a member of its consumer group."""

    def __init__(
        self,
        subscription: Subscription,
        registry: EventRegistry,
        settings: KafkaSettings,
        units: UnitOfWorkFactory,
        producer: Producer,
    ) -> None:
        self.name = subscription.name
        self.status = ConsumerStatus(subscription.name)
        self._subscription = subscription
        self._settings = settings
        self._origins = origins(subscription, registry)
        begin_at_zero(self.name, self._origins)
        self._processor = Processor(
            subscription, registry, self._origins, units, producer, self.status
        )
        self._positions = Positions(self.name, self._origins, settings)
        self._lag = LagMeter(self.status, settings)
        self._stopping = asyncio.Event()
        self._held: Batch = {}
        self._working: asyncio.Task[None] | None = None
        self._progress: Progress | None = None
        self._client: AIOKafkaConsumer | None = None
        self._assignments = 0
        self._next_look = 0.0

    async def run(self) -> None:
        """Consume until `stop`. A client that fails is replaced."""
        wait, longest = RESTART_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._session()
            except Draining:
                continue
            except Exception as error:  # whatever broke the client: say it, wait, make a new one
                if not isinstance(error, kafka_errors.KafkaError | TopicsMissing):
                    log.exception("consumer failed", consumer=self.name)
                self.status.blocked(await reason_for(error, self._settings))
                if time.monotonic() - started > longest:
                    wait = RESTART_SECONDS[0]
                await self._pause(wait)
                wait = min(wait * 2, longest)

    async def stop(self) -> None:
        """Ask `run` to end: no new batch; what is in flight has the drain time-out to finish."""
        self._stopping.set()
        self.status.draining.set()
        await self._drain()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            self.status.progressed()

    # A client and its life

    async def _session(self) -> None:
        client = AIOKafkaConsumer(**self._client_options())
        try:
            await client.start()
            await self._check_topics(client)
            self._client = client
            client.subscribe(list(self._origins), listener=self)
            self.status.unblocked()
            async with self._lag.measuring(client):
                await self._consume(client)
        finally:
            self._client = None
            self.status.assigned = False
            self._held.clear()
            await _close(client)

    def _client_options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            **consumer_options(settings),
            "group_id": f"{settings.kafka_group_id}.{self.name}",
            "auto_offset_reset": "none",  # `Positions` decides
            "session_timeout_ms": int(settings.kafka_session_timeout_seconds * 1000),
            "heartbeat_interval_ms": int(settings.kafka_session_timeout_seconds * 1000 / 5),
            # The group waits this long for members that are still draining.
            "rebalance_timeout_ms": int(settings.kafka_drain_timeout_seconds * 1000) + 10_000,
            "max_poll_records": self._subscription.largest_batch,
        }

    async def _check_topics(self, client: AIOKafkaConsumer) -> None:
        absent = sorted(set(self._origins) - await client.topics())
        if absent:
            raise await _missing(client, absent)

    async def _consume(self, client: AIOKafkaConsumer) -> None:
        while not self._stopping.is_set():
            batch = await self._fetch(client)
            self.status.progressed()
            if time.monotonic() >= self._next_look:
                await self._look(client, batch)
            if batch:
                await self._work(client, batch)

    async def _look(self, client: AIOKafkaConsumer, batch: Batch) -> None:
        """Once in a while: are all topics there, and has anything been passed without a message?"""
        self._next_look = time.monotonic() + LOOK_SECONDS
        absent = sorted(t for t in self._origins if not client.partitions_for_topic(t))
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                self.status.misses(str(await _missing(client, absent)) if absent else None)
                passed = await self._positions.passed(client, {*batch, *self._held})
            if passed:
                await self._commit_offsets(client, passed)
        except (TimeoutError, kafka_errors.KafkaError) as error:
            log.debug("look failed", consumer=self.name, error=repr(error))

    # Fetching

    async def _fetch(self, client: AIOKafkaConsumer) -> Batch:
        """The next messages that are due; empty when there are none for a moment."""
        batch = self._take_due(client)
        if not batch:
            seconds = self._seconds_to_next_due()
            self._keep(client, await self._getmany(client, min(FETCH_WAIT_SECONDS, seconds)))
            batch = self._take_due(client)
        return batch

    async def _getmany(self, client: AIOKafkaConsumer, seconds: float) -> Batch:
        # getmany is never cancelled: aiokafka would lose count of polls. During a rebalance it
        # returns only when the group has settled, however long that takes.
        fetch = asyncio.create_task(self._poll(client, seconds), name=f"consumer-{self.name}-fetch")
        while not fetch.done():
            await asyncio.wait({fetch}, timeout=1.0)
            if self._stopping.is_set() and not self.status.assigned:
                fetch.cancel()  # the client is given up, and with it its count
                raise Draining
            if not self.status.assigned:
                self.status.progressed()
        assignments, fetched = fetch.result()
        # Revoked meanwhile: whoever has the partitions now reads them from what is committed.
        return fetched if assignments == self._assignments else {}

    async def _poll(self, client: AIOKafkaConsumer, seconds: float) -> tuple[int, Batch]:
        """Fetch records; return the number of their assignment, too."""
        try:
            fetched = await client.getmany(timeout_ms=int(seconds * 1000))
        except (
            kafka_errors.NoOffsetForPartitionError,
            kafka_errors.OffsetOutOfRangeError,
        ) as error:
            fetched = {}
            await self._begin(client, error)
        return self._assignments, fetched

    async def _begin(self, client: AIOKafkaConsumer, error: kafka_errors.KafkaError) -> None:
        """Begin to read where nothing is committed, or where that is no longer there."""
        (what,) = error.args
        lost = {what: None} if isinstance(what, TopicPartition) else what
        assigned = client.assignment()
        with suppress(kafka_errors.IllegalStateError):  # revoked meanwhile
            for tp, position in lost.items():
                if tp in assigned:
                    begun = await self._positions.begin(client, tp, position)
                    self._lag.handled({tp: begun})
                    self._next_look = 0.0  # to commit it before anything else

    def _keep(self, client: AIOKafkaConsumer, fetched: Mapping[TopicPartition, Any]) -> None:
        for tp, records in fetched.items():
            self._held.setdefault(tp, []).extend(records)
            if due_at(records[-1]) is not None:
                client.pause(tp)  # a partition of delayed messages waits for its first one

    def _take_due(self, client: AIOKafkaConsumer) -> Batch:
        now = datetime.now(UTC)
        batch: Batch = {}
        for tp, records in list(self._held.items()):
            ready = _ready(records, now) if is_delay_topic(tp.topic) else len(records)
            if ready:
                batch[tp] = records[:ready]
            if ready == len(records):
                del self._held[tp]
                client.resume(tp)
            else:
                self._held[tp] = records[ready:]
        return batch

    def _seconds_to_next_due(self) -> float:
        now = datetime.now(UTC)
        due = [due_at(records[0]) or now for records in self._held.values()]
        return max(0.0, (min(due) - now).total_seconds()) if due else FETCH_WAIT_SECONDS

    # Working

    async def _work(self, client: AIOKafkaConsumer, batch: Batch) -> None:
        generation = self._assignments
        progress = self._progress = Progress(batch)
        self._working = asyncio.create_task(
            self._process(client, batch, progress), name=f"consumer-{self.name}-batch"
        )
        try:
            while not self._working.done():
                await asyncio.wait({self._working}, timeout=KEEP_ALIVE_SECONDS)
                if not self._working.done():
                    await self._keep_alive(client, progress)
            if not self._working.cancelled():
                self._working.result()
        finally:
            await self._abandon(self._working)
            self._working = self._progress = None
        if not progress.complete and generation == self._assignments:
            self._rewind(client, batch, progress)
        client.resume(*(client.paused() - set(self._held)))

    async def _abandon(self, working: asyncio.Task[None]) -> None:
        # When polling fails while a batch is at work, its transaction must not outlive the client.
        if not working.done():
            working.cancel()
            await asyncio.wait({working})

    async def _process(self, client: AIOKafkaConsumer, batch: Batch, progress: Progress) -> None:
        await self._processor.process(batch, progress)
        await self._commit(client, progress)

    async def _keep_alive(self, client: AIOKafkaConsumer, progress: Progress) -> None:
        """Slow work: poll without taking anything, so that the group keeps this member."""
        client.pause(*client.assignment())
        self._keep(client, await self._getmany(client, 0))
        await self._commit_once(client, progress)

    def _rewind(self, client: AIOKafkaConsumer, batch: Batch, progress: Progress) -> None:
        """Nothing that was fetched and left undone may be passed over."""
        for tp, offset in progress.first_undone().items():
            if tp in client.assignment():
                self._held.pop(tp, None)
                client.seek(tp, offset)

    # Committing

    async def _commit(self, client: AIOKafkaConsumer, progress: Progress) -> None:
        """Commit what is done, waiting for the broker as long as the partitions are ours."""
        wait, longest = COMMIT_AGAIN_SECONDS
        while (refusal := await self._commit_once(client, progress)) is not None:
            if self.status.draining.is_set():
                log.warning("offsets not committed before the end", consumer=self.name)
                return
            self.status.blocked(f"the broker takes no offsets: {type(refusal).__name__}")
            with suppress(Draining):  # once more, then
                await self.status.wait(wait)
            wait = min(wait * 2, longest)
        if self.status.trouble is not None:
            self.status.unblocked()

    async def _commit_once(
        self, client: AIOKafkaConsumer, progress: Progress
    ) -> TimeoutError | kafka_errors.KafkaError | None:
        """Why the broker did not take the offsets; None when there is nothing left to commit."""
        offsets = progress.committable()
        if not offsets:
            return None
        try:
            if await self._commit_offsets(client, offsets):
                progress.committed(offsets)
        except (TimeoutError, kafka_errors.KafkaError) as error:
            return error
        return None

    async def _commit_offsets(
        self, client: AIOKafkaConsumer, offsets: dict[TopicPartition, int]
    ) -> bool:
        """Commit; False when another member has the partitions.

        Raises TimeoutError or KafkaError when the broker does not take the offsets.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                await client.commit(offsets)
        except (kafka_errors.CommitFailedError, kafka_errors.IllegalStateError) as error:
            # What the other one handles again, the inbox recognises.
            log.info("offsets not committed", consumer=self.name, reason=str(error))
            return False
        self._positions.committed(offsets)
        self._lag.handled(offsets)
        return True

    # Rebalances

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.status.draining.set()
        self.status.assigned = False
        await self._drain()
        self._assignments += 1
        self._held.clear()
        self._positions.revoked()
        self._lag.revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if not self._stopping.is_set():
            self.status.draining.clear()
        self.status.assigned = True
        self.status.unblocked()  # what it waited for was with the partitions that it had
        self._lag.assigned(assigned)
        log.info("partitions assigned", consumer=self.name, partitions=len(assigned))

    async def _drain(self) -> None:
        """Wait for what is in flight; past the deadline roll it back and commit what is done."""
        working, progress, client = self._working, self._progress, self._client
        if working is None or progress is None or client is None:
            return
        _, late = await asyncio.wait({working}, timeout=self._settings.kafka_drain_timeout_seconds)
        if late:
            log.warning("drain deadline passed, rolling back", consumer=self.name)
            working.cancel()
            await asyncio.wait({working})
            await self._commit_once(client, progress)


async def _missing(client: AIOKafkaConsumer, absent: list[str]) -> TopicsMissing:
    hidden = await hidden_topics(client._client, absent)  # the consumer has no such call
    return TopicsMissing([name for name in absent if name not in hidden], hidden)


def _ready(records: list[ConsumerRecord], now: datetime) -> int:
    """Count the records of a delay topic that are due, from the first on."""
    for index, record in enumerate(records):
        due = due_at(record)
        if due is not None and due > now:
            return index
    return len(records)


async def _close(client: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.stop()
    except Exception as error:  # the group notices by itself when the session times out
        log.warning("consumer did not close cleanly", error=f"{type(error).__name__}: {error}")
