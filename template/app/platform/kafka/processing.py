"""The processing of a fetched batch: group commit first, one by one where that fails.

Whichever way a message takes, its inbox row and its effects are committed in one transaction, and
it counts as done only after that commit, or after Kafka has confirmed it in a retry or dead letter
topic.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from uuid import UUID

import structlog
from aiokafka import ConsumerRecord, TopicPartition
from sqlalchemy.exc import DBAPIError

from app.platform import tracing
from app.platform.database.errors import (
    error_message,
    is_retryable,
    is_unavailable,
    retry_transaction,
)
from app.platform.database.unit_of_work import UnitOfWork, UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.kafka import metrics
from app.platform.kafka.codec import decode, trace_of
from app.platform.kafka.delivery import Delivery, Undecodable
from app.platform.kafka.errors import BrokerUnavailable, UndecodableMessage
from app.platform.kafka.forwarding import Forwarder
from app.platform.kafka.inbox import claim
from app.platform.kafka.metrics import ConsumerStatus, Draining
from app.platform.kafka.producer import Producer
from app.platform.kafka.progress import Progress, split
from app.platform.kafka.reporting import Reporter
from app.platform.kafka.retry import Breaker, attempts_so_far, backoff, due_at
from app.platform.kafka.subscription import Subscription
from app.platform.kafka.topics import is_replay_topic

log = structlog.get_logger(__name__)


class InboxUnavailable(Exception):
    """Nothing can be recorded as applied. `app db upgrade` makes a missing table."""


class HandlerCancelled(Exception):
    """A handler awaited something that had been cancelled. Nobody cancelled the handler."""


class Processor:
    """Applies the messages of one subscription."""

    def __init__(
        self,
        subscription: Subscription,
        registry: EventRegistry,
        origins: Mapping[str, str],
        units: UnitOfWorkFactory,
        producer: Producer,
        status: ConsumerStatus,
    ) -> None:
        self._subscription = subscription
        self._name = subscription.name
        self._registry = registry
        self._origins = origins
        self._units = units
        self._status = status
        self._breaker = Breaker(subscription.overload)
        self._reporter = Reporter(subscription)
        self._forwarder = Forwarder(subscription, origins, producer, status, self._reporter)
        self._probing = asyncio.Lock()

    async def process(
        self, batch: Mapping[TopicPartition, Sequence[ConsumerRecord]], progress: Progress
    ) -> None:
        """Apply `batch` lane by lane and note in `progress` what is done.

        Returns early when the consumer drains; what was not begun by then is not noted.
        """
        records = [record for part in batch.values() for record in part]
        metrics.batch_size.labels(self._name).observe(len(records))
        lanes = split(records, self._subscription.concurrency)
        async with asyncio.TaskGroup() as group:
            for number, lane in enumerate(lanes):
                group.create_task(
                    self._lane(lane, progress), name=f"consumer-{self._name}-lane-{number}"
                )

    async def _lane(self, records: Sequence[ConsumerRecord], progress: Progress) -> None:
        tombstones = [record for record in records if record.value is None]
        self._skip(tombstones, progress)
        opened = [self._open(record) for record in records if record.value is not None]
        deliveries = [entry for entry in opened if isinstance(entry, Delivery)]
        try:
            together = await self._apply_together(deliveries, progress)
            if together and len(deliveries) == len(opened):
                self._succeeded(len(deliveries))
                return
            # In the order of arrival: it is by this order that overload is recognised.
            for entry in opened:
                if isinstance(entry, Undecodable):
                    await self._give_up_undecodable(entry)
                elif together:
                    self._succeeded()
                else:
                    await self._apply_alone(entry)
                progress.done(entry.record)
        except Draining:
            log.debug("lane drained", consumer=self._name)

    def _skip(self, tombstones: Sequence[ConsumerRecord], progress: Progress) -> None:
        """A null value says that what was there is deleted: no event, and no fault of anybody's."""
        for record in tombstones:
            metrics.tombstones_skipped.labels(self._name, record.topic).inc()
            log.debug("tombstone skipped", **self._reporter.place(record))
        progress.done(*tombstones)

    def _open(self, record: ConsumerRecord) -> "Delivery | Undecodable":
        try:
            return Delivery(
                record, decode(self._origins[record.topic], record.value, self._registry)
            )
        except UndecodableMessage as error:
            return Undecodable(record, error)

    # Group commit

    async def _apply_together(self, deliveries: list[Delivery], progress: Progress) -> bool:
        """Apply all in one transaction. False, with nothing applied, when a handler failed."""
        alone = not deliveries or (len(deliveries) == 1 and not self._subscription.batch)
        if alone or self._breaker.is_open:
            return False
        try:
            await self._forwarder.patiently(lambda: self._transaction(deliveries), _holds_up_all)
        except Draining:
            raise
        except Exception as error:
            # Which message it was, and what is to be done about it, is found out one by one.
            log.info(
                "batch rolled back, taking its messages one by one", **self._reporter.about(error)
            )
            return False
        progress.done(*(delivery.record for delivery in deliveries))
        return True

    async def _transaction(self, deliveries: Sequence[Delivery]) -> None:
        """One transaction: inbox rows for all, then the handlers, in order, for what is new."""
        self._status.check_draining()
        async with self._units.begin() as uow:
            ids = [delivery.event.event_id for delivery in deliveries]
            new = await self._claim(uow, ids)
            fresh = _first_of_each(deliveries, new)
            try:
                await self._handle(fresh, uow)
            except asyncio.CancelledError as error:
                if _is_being_cancelled():
                    raise
                # As it is, it would end the lane without a word: no attempt, no dead letter.
                raise HandlerCancelled("the handler awaited what had been cancelled") from error
        self._reporter.count(deliveries, fresh)
        self._reporter.tell(fresh)
        self._status.progressed()

    async def _claim(self, uow: UnitOfWork, ids: Sequence[UUID]) -> set[UUID]:
        try:
            return await claim(uow.session, self._name, ids)
        except DBAPIError as error:
            # Whatever is wrong with the inbox (its table is missing, say), no message is at fault.
            raise InboxUnavailable(
                f"the inbox cannot be written: {error_message(error)}"
            ) from error

    async def _handle(self, deliveries: Sequence[Delivery], uow: UnitOfWork) -> None:
        if not self._subscription.batch:
            for delivery in deliveries:
                await self._handle_one(delivery, uow)
            return
        for model, run in groupby(deliveries, key=lambda delivery: type(delivery.event)):
            part = list(run)
            events = [delivery.event for delivery in part]
            with (
                _stories_of(part),
                metrics.handler_time.labels(self._name, events[0].event_type).time(),
            ):
                await self._subscription.handlers[model](events, uow)

    async def _handle_one(self, delivery: Delivery, uow: UnitOfWork) -> None:
        event = delivery.event
        with (
            _stories_of([delivery]),
            metrics.handler_time.labels(self._name, event.event_type).time(),
        ):
            await self._subscription.handler(event)(event, uow)

    # One by one

    async def _apply_alone(self, delivery: Delivery) -> None:
        """Apply one message, with retries in place; give it up when they are exhausted."""
        attempts = attempts_so_far(delivery.record)
        if self._breaker.is_open:
            await self._probe(delivery, attempts)
            return
        policy = self._subscription.retry
        in_place = policy.attempts if due_at(delivery.record) is None else 1
        for attempt in range(1, in_place + 1):
            error = await self._attempt(delivery)
            if error is None:
                self._succeeded()
                return
            if self._reporter.is_permanent(error) or attempt == in_place:
                await self._exhausted(delivery, error, attempts + attempt)
                return
            metrics.messages_retried.labels(self._name, delivery.record.topic, "in_place").inc()
            await self._status.wait(backoff(policy, attempt))

    async def _exhausted(self, delivery: Delivery, error: Exception, attempts: int) -> None:
        # A permanent error is the message's own: it says nothing about what comes after it.
        if not self._reporter.is_permanent(error) and self._paused_by(delivery.record, error):
            await self._probe(delivery, attempts)
        else:
            await self._forwarder.give_up(delivery.record, error, attempts)

    async def _attempt(self, delivery: Delivery) -> Exception | None:
        """Apply one message once; the error of its handler, or None. Infrastructure is waited for."""
        try:
            await self._forwarder.patiently(
                lambda: retry_transaction(lambda: self._transaction([delivery])), _is_away
            )
        except Draining:
            raise
        except Exception as error:
            kind = "permanent" if self._reporter.is_permanent(error) else "transient"
            self._reporter.failed(delivery.record, error, kind)
            return error
        return None

    async def _give_up_undecodable(self, entry: Undecodable) -> None:
        self._status.check_draining()
        # Not throttled, and no sign of overload: nothing that the service waits for would help.
        self._reporter.failed(entry.record, entry.error, "permanent")
        metrics.messages_undecodable.labels(self._name, entry.record.topic).inc()
        await self._forwarder.give_up(entry.record, entry.error, attempts_so_far(entry.record) + 1)

    # Overload

    async def _probe(self, delivery: Delivery, attempts: int) -> None:
        """Try the message slowly, alone, until it passes or has had its share of probes."""
        error: Exception | None = None
        async with self._probing:
            for _ in range(self._subscription.overload.probes):
                if not self._breaker.is_open:
                    break
                await self._status.wait(self._breaker.probe_wait())
                error = await self._attempt(delivery)
                attempts += 1
                if error is None:
                    self._succeeded()
                    return
                if self._reporter.is_permanent(error):
                    break
        if error is None:  # another message closed the breaker while this one waited its turn
            await self._apply_alone(delivery)
        else:
            await self._forwarder.give_up(delivery.record, error, attempts)

    def _paused_by(self, record: ConsumerRecord, error: Exception) -> bool:
        """Count a message that is to be given up; whether the subscription is paused now."""
        if is_replay_topic(record.topic):
            return False  # it has failed before: however many of them fail again, that is no news
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

    def _succeeded(self, messages: int = 1) -> None:
        if self._breaker.succeeded(messages):
            self._status.overload = None
            metrics.paused.labels(self._name, "overload").set(0)
            log.info("subscription resumed", consumer=self._name)


def _stories_of(deliveries: Sequence[Delivery]) -> AbstractContextManager[object]:
    """The tracing context in which handlers run: what an event caused is part of its story."""
    if len(deliveries) == 1:
        (only,) = deliveries
        return tracing.bind_trace(trace_of(only.record.headers, only.event.event_id))
    headers = {delivery.event.event_id: delivery.record.headers for delivery in deliveries}
    return tracing.bind_batch(lambda id: trace_of(headers[id], id) if id in headers else None)


def _first_of_each(deliveries: Sequence[Delivery], new: set[UUID]) -> Sequence[Delivery]:
    """Those whose event is new; of an event that is there twice, the first."""
    if len(new) == len(deliveries):
        return deliveries
    fresh = []
    left = set(new)
    for delivery in deliveries:
        if delivery.event.event_id in left:
            left.discard(delivery.event.event_id)
            fresh.append(delivery)
    return fresh


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_away(error: Exception) -> bool:
    return isinstance(error, BrokerUnavailable | InboxUnavailable) or is_unavailable(error)


def _holds_up_all(error: Exception) -> bool:
    # Alone, a message holds fewer locks, and meets fewer of others.
    return _is_away(error) and not is_retryable(error)
