"""The processing of a fetched batch: a group commit, and one message at a time where that fails.

Either way, a message's inbox row and its effects are committed in one transaction. It counts as done
after that commit, or once Kafka has confirmed it in a delay topic or dead letter topic.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from uuid import UUID

import structlog
from aiokafka import ConsumerRecord, TopicPartition
from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError

from app.platform.database.errors import (
    error_message,
    is_retryable,
    is_unavailable,
    retry_transaction,
)
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.kafka import metrics
from app.platform.kafka.consumer_spans import ConsumerSpans
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.delivery import Delivery, Undecodable
from app.platform.kafka.errors import BrokerUnavailable, UndecodableMessage
from app.platform.kafka.forwarding import Forwarder
from app.platform.kafka.inbox import claim
from app.platform.kafka.offsets import OffsetTracker, split_into_lanes
from app.platform.kafka.producer import Producer
from app.platform.kafka.reporting import Reporter
from app.platform.kafka.retry import CircuitBreaker, due_at, previous_attempts
from app.platform.kafka.status import ConsumerStatus, Draining
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import is_replay_topic

log = structlog.get_logger(__name__)


class InboxUnavailable(Exception):
    """The inbox cannot be written. `app db upgrade` creates a missing table."""


class HandlerCancelled(Exception):
    """A handler awaited something that was cancelled. The handler itself was not."""


class Processor:
    """The part of a consumer that applies messages, retries them, and gives up on them."""

    def __init__(
        self,
        subscription: Subscription,
        registry: EventRegistry,
        source_topics: Mapping[str, str],
        units: UnitOfWorkFactory,
        producer: Producer,
        status: ConsumerStatus,
        group: str | None = None,
    ) -> None:
        self._subscription = subscription
        self._name = subscription.name
        self._decoder = EventDecoder(registry, subscription.handlers, subscription.tombstones)
        self._source_topics = source_topics
        self._units = units
        self._status = status
        self._breaker = CircuitBreaker(subscription.overload)
        self._reporter = Reporter(subscription)
        self._spans = ConsumerSpans(subscription.name, group, source_topics)
        self._forwarder = Forwarder(subscription, source_topics, producer, status, self._reporter)
        self._probing = asyncio.Lock()

    async def process(
        self,
        batch: Mapping[TopicPartition, Sequence[ConsumerRecord]],
        tracker: OffsetTracker,
        began: int | None = None,
    ) -> None:
        """Apply `batch` in lanes, and mark in `tracker` what is done; its fetch `began` at a time in ns.

        Returns early when the consumer drains, with the rest of the batch unmarked.
        """
        records = [record for part in batch.values() for record in part]
        metrics.batch_size.labels(self._name).observe(len(records))
        lanes = split_into_lanes(records, self._subscription.concurrency)
        with self._spans.fetch(records, began):
            async with asyncio.TaskGroup() as group:
                for number, lane in enumerate(lanes):
                    name = f"consumer-{self._name}-lane-{number}"
                    group.create_task(self._process_lane(lane, tracker), name=name)

    async def _process_lane(
        self, records: Sequence[ConsumerRecord], tracker: OffsetTracker
    ) -> None:
        decoded = self._decode_all(records, tracker)
        deliveries = [entry for entry in decoded if isinstance(entry, Delivery)]
        try:
            together = await self._apply_together(deliveries, tracker)
            if together and len(deliveries) == len(decoded):
                self._record_success(len(deliveries))
                return
            # In the order of arrival, which the detection of overload depends on.
            for entry in decoded:
                if isinstance(entry, Undecodable):
                    await self._give_up_undecodable(entry)
                elif together:
                    self._record_success()
                else:
                    await self._apply_alone(entry)
                tracker.mark_done(entry.record)
        except Draining:
            log.debug("lane drained", consumer=self._name)

    def _decode_all(
        self, records: Sequence[ConsumerRecord], tracker: OffsetTracker
    ) -> list[Delivery | Undecodable]:
        """Decode `records`, without those that concern no handler."""
        found = []
        for record in records:
            if (entry := self._decode(record)) is None:
                is_tombstone = self._decoder.is_tombstone(record, self._origin(record))
                counter = metrics.tombstones_skipped if is_tombstone else metrics.messages_skipped
                self._skip(record, tracker, counter)
            else:
                found.append(entry)
        return found

    def _skip(self, record: ConsumerRecord, tracker: OffsetTracker, counter: Counter) -> None:
        counter.labels(self._name, record.topic).inc()
        log.debug("message skipped", **self._reporter.record_fields(record))
        tracker.mark_done(record)

    def _decode(self, record: ConsumerRecord) -> Delivery | Undecodable | None:
        try:
            decoded = self._decoder.decode(record, self._origin(record))
        except UndecodableMessage as error:
            return Undecodable(record, error)
        return None if decoded is None else Delivery(record, decoded.event, decoded.id)

    # Group commit

    async def _apply_together(self, deliveries: list[Delivery], tracker: OffsetTracker) -> bool:
        """Apply all in one transaction; return False, with nothing applied, if a handler failed."""
        alone = not deliveries or (len(deliveries) == 1 and not self._subscription.batch)
        if alone or self._breaker.is_open:
            return False
        try:
            await self._forwarder.retry_while_unavailable(
                lambda: self._apply_in_transaction(deliveries), _blocks_batch
            )
        except Draining:
            raise
        except Exception as error:
            # Handling the messages one at a time shows which of them failed, and why.
            log.info("batch rolled back", **self._reporter.error_fields(error))
            return False
        tracker.mark_done(*(delivery.record for delivery in deliveries))
        return True

    async def _apply_in_transaction(self, deliveries: Sequence[Delivery]) -> None:
        """Insert the inbox rows of all, then call the handlers, in order, for those that are new."""
        self._status.check_draining()
        with self._spans.transaction(deliveries):
            async with self._units.begin() as uow:
                ids = [delivery.id for delivery in deliveries]
                new = await self._claim(uow, ids)
                fresh = _deduplicate(deliveries, new)
                try:
                    await self._handle(fresh, uow)
                except asyncio.CancelledError as error:
                    if _is_being_cancelled():
                        raise
                    # Unconverted, it would silently end the lane: no attempt, no dead letter.
                    raise HandlerCancelled("the handler awaited something cancelled") from error
            self._reporter.count_consumed(deliveries, fresh)
            self._reporter.log_applied(fresh)
        self._status.record_progress()

    async def _claim(self, uow: UnitOfWork, ids: Sequence[UUID]) -> set[UUID]:
        try:
            return await claim(uow.session, self._name, ids)
        except DBAPIError as error:
            # No message is at fault for an error of the inbox, such as a missing table.
            raise InboxUnavailable(
                f"the inbox cannot be written: {error_message(error)}"
            ) from error

    async def _handle(self, deliveries: Sequence[Delivery], uow: UnitOfWork) -> None:
        if not self._subscription.batch:
            for delivery in deliveries:
                await self._handle_one(delivery, uow)
            return
        handler_of = self._subscription.handler
        for handler, run in groupby(deliveries, key=lambda delivery: handler_of(delivery.event)):
            part = list(run)
            events = [delivery.event for delivery in part]
            with (
                self._spans.handling(part),
                metrics.timing_handler(self._name, events[0].event_type),
            ):
                await handler(events, uow)

    async def _handle_one(self, delivery: Delivery, uow: UnitOfWork) -> None:
        event = delivery.event
        with (
            self._spans.handling([delivery]),
            metrics.timing_handler(self._name, event.event_type),
        ):
            await self._subscription.handler(event)(event, uow)

    # One at a time

    async def _apply_alone(self, delivery: Delivery) -> None:
        """Apply one message, with retries in place; give up when they are exhausted."""
        attempts = previous_attempts(delivery.record, self._origin(delivery.record))
        if self._breaker.is_open:
            await self._probe(delivery, attempts)
            return
        policy = self._subscription.retry
        backoff = policy.backoff()
        delayed = due_at(delivery.record, self._origin(delivery.record)) is not None
        in_place = 1 if delayed else policy.attempts
        first_failed_at: datetime | None = None
        for attempt in range(1, in_place + 1):
            error = await self._attempt(delivery, attempts + attempt)
            if error is None:
                self._record_success()
                return
            if self._reporter.is_permanent(error) or attempt == in_place:
                await self._give_up(delivery, error, attempts + attempt, first_failed_at)
                return
            first_failed_at = first_failed_at or datetime.now(UTC)
            metrics.messages_retried.labels(self._name, delivery.record.topic, "in_place").inc()
            await self._status.wait(backoff.next())

    def _origin(self, record: ConsumerRecord) -> str:
        return self._source_topics[record.topic]

    async def _give_up(
        self, delivery: Delivery, error: Exception, attempts: int, first_failed_at: datetime | None
    ) -> None:
        # A permanent error concerns this message only, and predicts nothing about the next ones.
        if not self._reporter.is_permanent(error) and self._is_overloaded(delivery.record, error):
            await self._probe(delivery, attempts, first_failed_at or datetime.now(UTC))
        else:
            await self._forwarder.give_up(delivery, error, attempts, first_failed_at)

    async def _attempt(self, delivery: Delivery, number: int) -> Exception | None:
        """Apply one message once, waiting out outages; return the error of its handler, if any.

        `number` counts the attempts at it, from 1.
        """
        try:
            await self._forwarder.retry_while_unavailable(
                lambda: retry_transaction(lambda: self._apply_in_transaction([delivery])),
                _is_unavailable,
            )
        except Draining:
            raise
        except Exception as error:
            kind = "permanent" if self._reporter.is_permanent(error) else "transient"
            self._reporter.record_failure(delivery, error, kind, number)
            return error
        return None

    async def _give_up_undecodable(self, entry: Undecodable) -> None:
        self._status.check_draining()
        self._spans.fail(entry)
        # Neither throttled nor a sign of overload, because waiting cannot help.
        attempts = previous_attempts(entry.record, self._origin(entry.record)) + 1
        self._reporter.record_failure(entry, entry.error, "permanent", attempts)
        metrics.messages_undecodable.labels(self._name, entry.record.topic).inc()
        await self._forwarder.give_up(entry, entry.error, attempts)

    # Overload

    async def _probe(
        self, delivery: Delivery, attempts: int, first_failed_at: datetime | None = None
    ) -> None:
        """Retry the message with growing waits, until it succeeds or has used up its probes."""
        error: Exception | None = None
        async with self._probing:
            for _ in range(self._subscription.overload.probes):
                if not self._breaker.is_open:
                    break
                await self._status.wait(self._breaker.probe_wait())
                attempts += 1
                error = await self._attempt(delivery, attempts)
                if error is None:
                    self._record_success()
                    return
                if self._reporter.is_permanent(error):
                    break
                first_failed_at = first_failed_at or datetime.now(UTC)
        if error is None:  # another message closed the breaker meanwhile
            await self._apply_alone(delivery)
        else:
            await self._forwarder.give_up(delivery, error, attempts, first_failed_at)

    def _is_overloaded(self, record: ConsumerRecord, error: Exception) -> bool:
        """Count a failed message; return whether the subscription is paused now."""
        if is_replay_topic(record.topic, self._origin(record)):
            return False  # it had failed before: a repetition is no sign of overload
        return self._breaker.is_open or self._open_breaker(error)

    def _open_breaker(self, error: Exception) -> bool:
        if self._breaker.failed(error):
            share = self._breaker.share_failed
            self._status.overload = (
                f"{share:.0%} of the last {self._subscription.overload.window} messages failed,"
                f" the last with {self._breaker.last_error}"
            )
            metrics.paused.labels(self._name, "overload").set(1)
            log.error("subscription paused", consumer=self._name, reason=self._status.overload)
        return self._breaker.is_open

    def _record_success(self, messages: int = 1) -> None:
        if self._breaker.succeeded(messages):
            self._status.overload = None
            metrics.paused.labels(self._name, "overload").set(0)
            log.info("subscription resumed", consumer=self._name)


def _deduplicate(deliveries: Sequence[Delivery], new: set[UUID]) -> Sequence[Delivery]:
    """Return the deliveries whose event is new, and only the first of each event."""
    if len(new) == len(deliveries):
        return deliveries
    fresh = []
    remaining = set(new)
    for delivery in deliveries:
        if delivery.id in remaining:
            remaining.discard(delivery.id)
            fresh.append(delivery)
    return fresh


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_unavailable(error: Exception) -> bool:
    return isinstance(error, BrokerUnavailable | InboxUnavailable) or is_unavailable(error)


def _blocks_batch(error: Exception) -> bool:
    # After a deadlock, single messages do better: they take fewer locks.
    return _is_unavailable(error) and not is_retryable(error)
