"""The consumers of a process: started together, monitored, and stopped within a deadline."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import EventRegistry
from app.platform.health import Health, Unhealthy
from app.platform.kafka.consumer import Consumer
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.subscription import Subscription, check_names
from app.platform.kafka.topics import DEAD_LETTER_OVERTIME

log = structlog.get_logger(__name__)

STOP_MARGIN_SECONDS = 10.0


@asynccontextmanager
async def consuming(
    subscriptions: Sequence[Subscription],
    registry: EventRegistry,
    settings: KafkaSettings,
    units: UnitOfWorkFactory,
    producer: Producer,
    health: Health,
) -> AsyncIterator[list[Consumer]]:
    """Run a consumer for each subscription; at the end, drain them all within the time-out.

    Raises ValueError if two subscriptions have the same name.
    """
    check_names(subscriptions)
    check_inbox_retention(settings, subscriptions)
    consumers = [Consumer(s, registry, settings, units, producer) for s in subscriptions]
    tasks = [asyncio.create_task(c.run(), name=f"consumer-{c.name}") for c in consumers]
    for consumer, task in zip(consumers, tasks, strict=True):
        _add_checks(health, consumer, task, settings)
    try:
        yield consumers
    finally:
        await _stop(consumers, tasks, settings.kafka_drain_timeout_seconds + STOP_MARGIN_SECONDS)


async def _stop(
    consumers: Sequence[Consumer], tasks: Sequence[asyncio.Task[None]], seconds: float
) -> None:
    await asyncio.gather(*(consumer.stop() for consumer in consumers))
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        log.error("consumer did not stop in time", task=task.get_name())
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _add_checks(
    health: Health, consumer: Consumer, task: asyncio.Task[None], settings: KafkaSettings
) -> None:
    async def live() -> None:
        if task.done():
            raise Unhealthy("the consumer has ended")
        stalled = consumer.status.seconds_without_progress
        if stalled > settings.kafka_stall_timeout_seconds:
            raise Unhealthy(f"no progress for {stalled:.0f} s")

    async def ready() -> None:
        status = consumer.status
        for problem in (status.block_reason, status.overload, status.missing_topics):
            if problem:
                raise Unhealthy(problem)
        if not status.assigned:
            raise Unhealthy("waiting for the consumer group to assign partitions")

    health.add_liveness_check(f"consumer {consumer.name}", live)
    health.add_readiness_check(f"consumer {consumer.name}", ready)


def check_inbox_retention(settings: KafkaSettings, subscriptions: Sequence[Subscription]) -> bool:
    """Warn, and return False, if an event can be delivered again after its inbox row is deleted."""
    delays = [sum(s.retry.retry_after, timedelta()) for s in subscriptions]
    needed = max(
        timedelta(hours=settings.kafka_topic_retention_hours) + max(delays, default=timedelta()),
        # A replayed letter stays in its topic, where only its inbox row identifies it.
        timedelta(hours=settings.kafka_dlq_retention_hours) + DEAD_LETTER_OVERTIME,
    )
    if timedelta(hours=settings.inbox_retention_hours) >= needed:
        return True
    log.warning(
        "INBOX_RETENTION_HOURS is too short: messages and replayed dead letters can be applied twice",
        inbox_retention_hours=settings.inbox_retention_hours,
        needed_hours=needed.total_seconds() / 3600,
    )
    return False
