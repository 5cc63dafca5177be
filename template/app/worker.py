"""The worker: the consumers of the service, and the upkeep of their inbox."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from app.kafka.consumer import consuming
from app.kafka.inbox import inbox_retention
from app.runtime import Runtime


@asynccontextmanager
async def lifespan(runtime: Runtime) -> AsyncIterator[None]:
    """Consume for the length of the block."""
    settings = runtime.configuration.kafka
    keep = timedelta(hours=settings.inbox_retention_hours)
    async with (
        inbox_retention(runtime.database.sessions, keep),
        consuming(
            runtime.subscriptions,
            runtime.registry,
            settings,
            runtime.units,
            runtime.producer,
            runtime.health,
        ),
    ):
        yield
