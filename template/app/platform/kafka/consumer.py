"""The consumer of one subscription: fetching, group membership, and draining.

It runs as long as the process: during any outage of Kafka or the database, it waits.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka_errors

from app.platform.backoff import Backoff, wait_for_event
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.kafka.admin import hidden_topics, not_authorized
from app.platform.kafka.buffer import Batch, FetchBuffer
from app.platform.kafka.lag import AssignmentLag
from app.platform.kafka.metrics import initialise_counters
from app.platform.kafka.offsets import COMMIT_TIMEOUT_SECONDS, OffsetCommitter, OffsetTracker
from app.platform.kafka.positions import Positions
from app.platform.kafka.processing import Processor
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings, consumer_options, reason_for
from app.platform.kafka.status import ConsumerStatus, Draining
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import group_of, missing_foreign, source_topics

log = structlog.get_logger(__name__)

FETCH_WAIT_SECONDS = 0.5
START_TIMEOUT_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 3.0
CHECK_INTERVAL_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 5.0
RESTART_SECONDS = (0.2, 5.0)


class TopicsMissing(Exception):
    """Topics of a subscription do not exist, or are hidden from the user.

    `owners` has the services that have to create the missing topics of foreign events.
    """

    def __init__(self, missing: list[str], hidden: list[str], owners: Mapping[str, str]) -> None:
        reasons = [not_authorized(hidden)] if hidden else []
        if own := [topic for topic in missing if topic not in owners]:
            reasons.append(f"missing topics: {', '.join(own)}; run `app topics create`")
        reasons += [missing_foreign(topic, owners[topic]) for topic in missing if topic in owners]
        super().__init__("; ".join(reasons))


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """A member of a subscription's consumer group, which fetches, processes and commits."""

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
        self._source_topics = source_topics(subscription, registry)
        owners = {topic: registry.owner(topic) for topic in self._source_topics}
        self._owners = {topic: owner for topic, owner in owners.items() if owner is not None}
        initialise_counters(self.name, self._source_topics)
        self._processor = Processor(
            subscription,
            registry,
            self._source_topics,
            units,
            producer,
            self.status,
            group_of(self.name, settings),
        )
        self._positions = Positions(self.name, self._source_topics, settings)
        self._lag = AssignmentLag(self.status, settings)
        self._committer = OffsetCommitter(self.status, self._positions, self._lag)
        self._stopping = asyncio.Event()
        self._buffer = FetchBuffer(self._source_topics)
        self._processing: asyncio.Task[None] | None = None
        self._tracker: OffsetTracker | None = None
        self._client: AIOKafkaConsumer | None = None
        self._generation = 0  # of assignments: what an earlier one fetched is not processed
        self._next_check = 0.0

    async def run(self) -> None:
        """Consume until `stop`, replacing clients that fail."""
        backoff = Backoff(*RESTART_SECONDS)
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._run_client()
            except Draining:
                continue
            except Exception as error:  # whatever broke the client: report it, wait, create another
                if not isinstance(error, kafka_errors.KafkaError | TopicsMissing):
                    log.exception("consumer failed", consumer=self.name)
                self.status.block(await reason_for(error, self._settings))
                if time.monotonic() - started > backoff.maximum:
                    backoff.reset()
                if not await wait_for_event(self._stopping, backoff.next()):
                    self.status.record_progress()

    async def stop(self) -> None:
        """Begin no new batch, give the one in progress the drain time-out, and let `run` end."""
        self._stopping.set()
        self.status.draining.set()
        await self._drain()

    async def _run_client(self) -> None:
        client = AIOKafkaConsumer(**self._client_options())
        try:
            await client.start()
            await self._check_topics(client)
            self._client = client
            client.subscribe(list(self._source_topics), listener=self)
            self.status.unblock()
            async with self._lag.measuring(client):
                await self._consume(client)
        finally:
            self._client = None
            self.status.assigned = False
            self._buffer.clear()
            await _close(client)

    def _client_options(self) -> dict[str, Any]:
        settings = self._settings
        return {
            **consumer_options(settings),
            "group_id": group_of(self.name, settings),
            "auto_offset_reset": "none",  # `Positions` chooses the start
            "session_timeout_ms": int(settings.kafka_session_timeout_seconds * 1000),
            "heartbeat_interval_ms": int(settings.kafka_session_timeout_seconds * 1000 / 5),
            # The group waits this long for members that are still draining.
            "rebalance_timeout_ms": int(settings.kafka_drain_timeout_seconds * 1000) + 10_000,
            "max_poll_records": self._subscription.max_batch_size,
        }

    async def _check_topics(self, client: AIOKafkaConsumer) -> None:
        absent = sorted(set(self._source_topics) - await client.topics())
        if absent:
            raise await self._topics_missing(client, absent)

    async def _topics_missing(self, client: AIOKafkaConsumer, absent: list[str]) -> TopicsMissing:
        hidden = await hidden_topics(client._client, absent)  # the consumer client has no such call
        missing = [topic for topic in absent if topic not in hidden]
        return TopicsMissing(missing, hidden, self._owners)

    async def _consume(self, client: AIOKafkaConsumer) -> None:
        while not self._stopping.is_set():
            began = time.time_ns()
            batch = await self._fetch(client)
            generation = self._generation
            self.status.record_progress()
            if time.monotonic() >= self._next_check:
                await self._check(client, batch)
            if batch and generation == self._generation:
                await self._process(client, batch, began)

    async def _check(self, client: AIOKafkaConsumer, batch: Batch) -> None:
        """Look for missing topics, and commit positions that moved without a message."""
        self._next_check = time.monotonic() + CHECK_INTERVAL_SECONDS
        absent = sorted(t for t in self._source_topics if not client.partitions_for_topic(t))
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                self.status.set_missing_topics(
                    str(await self._topics_missing(client, absent)) if absent else None
                )
                skipped = await self._positions.skipped(client, {*batch, *self._buffer})
            if skipped:
                await self._committer.commit(client, skipped)
        except (TimeoutError, kafka_errors.KafkaError) as error:
            log.debug("check failed", consumer=self.name, error=repr(error))

    # Fetching

    async def _fetch(self, client: AIOKafkaConsumer) -> Batch:
        """Return the next messages that are due; none if none arrives within a moment."""
        batch = self._buffer.take_due(client)
        if not batch:
            seconds = self._buffer.seconds_until_due()
            wait = FETCH_WAIT_SECONDS if seconds is None else min(FETCH_WAIT_SECONDS, seconds)
            self._buffer.add(client, await self._getmany(client, wait))
            batch = self._buffer.take_due(client)
        return batch

    async def _getmany(self, client: AIOKafkaConsumer, seconds: float) -> Batch:
        # getmany is never cancelled, because aiokafka would miscount its polls. During a rebalance it
        # returns only when the group is stable, however long that takes.
        fetch = asyncio.create_task(self._poll(client, seconds), name=f"consumer-{self.name}-fetch")
        while not fetch.done():
            await asyncio.wait({fetch}, timeout=1.0)
            if self._stopping.is_set() and not self.status.assigned:
                fetch.cancel()  # the client, and with it the count, is not used again
                raise Draining
            if not self.status.assigned:
                self.status.record_progress()
        generation, fetched = fetch.result()
        # After a revocation, the next owner of the partitions reads from the committed offsets.
        return fetched if generation == self._generation else {}

    async def _poll(self, client: AIOKafkaConsumer, seconds: float) -> tuple[int, Batch]:
        """Fetch records; return them after the generation of their assignment."""
        lost: dict[TopicPartition, int | None] = {}
        fetched: Batch | None = None
        generation = self._generation
        while fetched is None:
            timeout = 0 if lost else int(seconds * 1000)
            try:
                fetched = await client.getmany(timeout_ms=timeout)
                generation = self._generation
            except (
                kafka_errors.NoOffsetForPartitionError,
                kafka_errors.OffsetOutOfRangeError,
            ) as error:  # of one partition, and perhaps the first of many
                (argument,) = error.args
                lost |= {argument: None} if isinstance(argument, TopicPartition) else argument
        if lost:
            await self._start_reading(client, lost)
        return generation, fetched

    async def _start_reading(
        self, client: AIOKafkaConsumer, lost: Mapping[TopicPartition, int | None]
    ) -> None:
        """Choose the positions in partitions without a valid committed offset."""
        assigned = client.assignment()
        own = {tp: position for tp, position in lost.items() if tp in assigned}
        # Revoked meanwhile, and perhaps assigned again: then the next fetch reports them once more.
        with suppress(kafka_errors.IllegalStateError, TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                self._lag.handled(await self._positions.start(client, own))
            self._next_check = 0.0  # to commit them before anything else

    # Processing

    async def _process(
        self, client: AIOKafkaConsumer, batch: Batch, began: int | None = None
    ) -> None:
        generation = self._generation
        tracker = self._tracker = OffsetTracker(batch)
        task = self._processing = asyncio.create_task(
            self._process_and_commit(client, batch, tracker, began),
            name=f"consumer-{self.name}-batch",
        )
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=KEEP_ALIVE_SECONDS)
                if not task.done():
                    await self._keep_alive(client, tracker)
            if not task.cancelled():
                task.result()
        finally:
            # If polling failed, the batch's transaction must not outlive the client.
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            self._processing = self._tracker = None
        if not tracker.complete and generation == self._generation:
            self._rewind(client, tracker)
        client.resume(*(client.paused() - set(self._buffer)))

    async def _process_and_commit(
        self, client: AIOKafkaConsumer, batch: Batch, tracker: OffsetTracker, began: int | None
    ) -> None:
        await self._processor.process(batch, tracker, began)
        await self._committer.commit_all(client, tracker)

    async def _keep_alive(self, client: AIOKafkaConsumer, tracker: OffsetTracker) -> None:
        """Poll without fetching, so that the group keeps this member during slow work."""
        client.pause(*client.assignment())
        self._buffer.add(client, await self._getmany(client, 0))
        await self._committer.try_commit(client, tracker)

    def _rewind(self, client: AIOKafkaConsumer, tracker: OffsetTracker) -> None:
        """Read unfinished records again, before those that follow them."""
        for tp, offset in tracker.first_undone().items():
            if tp in client.assignment():
                self._buffer.discard(tp)
                client.seek(tp, offset)

    # Rebalances

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.status.draining.set()
        self.status.assigned = False
        await self._drain()
        self._generation += 1
        self._buffer.clear()
        self._positions.revoked()
        self._lag.revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if not self._stopping.is_set():
            self.status.draining.clear()
        self.status.assigned = True
        self.status.unblock()  # its block was about the partitions that it had before
        self._lag.assigned(assigned)
        log.info("partitions assigned", consumer=self.name, partitions=len(assigned))

    async def _drain(self) -> None:
        """Wait for the batch in progress; past the deadline, roll it back and commit what is done."""
        task, tracker, client = self._processing, self._tracker, self._client
        if task is None or tracker is None or client is None:
            return
        _, late = await asyncio.wait({task}, timeout=self._settings.kafka_drain_timeout_seconds)
        if late:
            log.warning("drain deadline exceeded, batch rolled back", consumer=self.name)
            task.cancel()
            await asyncio.wait({task})
            await self._committer.try_commit(client, tracker)


async def _close(client: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await client.stop()
    except Exception as error:  # the group removes the member when its session times out
        log.warning("consumer did not close cleanly", error=f"{type(error).__name__}: {error}")
