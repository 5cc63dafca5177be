"""The connection of a producer: made in the background, and replaced when its client fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from app.platform.backoff import Backoff
from app.platform.kafka import metrics
from app.platform.kafka.client import Client
from app.platform.kafka.settings import KafkaSettings, client_options, reason_for
from app.platform.kafka.topics import forwarded_limit

log = structlog.get_logger(__name__)

# The largest batch of one partition. The client waits for a partition's acknowledgement before it
# sends the next batch there, so its default of 16 kB would mean dozens of requests for the messages
# that a relay or a busy handler sends at once.
_BATCH_BYTES = 262_144
_RECONNECT_SECONDS = (0.2, 5.0)
_CLOSE_SECONDS = 5.0


class Connection:
    """A client that connects for as long as it takes. `client` is None while there is none."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.client: Client | None = None
        self.failure = "not started"
        self._settings = settings
        self._options = _producer_options(settings)
        self._connected = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connect in the background for the length of the block; flush and close at its end."""
        self._connecting = asyncio.create_task(self._connect(), name="kafka-producer-connect")
        try:
            yield
        finally:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            if self.client is not None:
                await _close(self.client)
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def ready(self) -> Client:
        """Return the client, once it is connected."""
        while self.client is None:
            await self._connected.wait()
        return self.client

    def replace(self, client: Client, reason: str) -> None:
        """Close `client` and connect another one, unless that has already happened."""
        if client is not self.client:
            return
        log.warning("producer replaced", reason=reason)
        metrics.producer_replacements.inc()
        self._connected.clear()
        self.client = None
        self.failure = reason
        closing = asyncio.create_task(_close(client), name="kafka-producer-close")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._connecting = asyncio.create_task(self._connect(), name="kafka-producer-connect")

    async def _connect(self) -> None:
        backoff = Backoff(*_RECONNECT_SECONDS)
        while True:
            client = Client(**self._options)
            try:
                await client.start()
            except asyncio.CancelledError:
                await _close(client)
                raise
            except Exception as error:  # whatever the reason, the service stays up and reports it
                await _close(client)
                self._report(await reason_for(error, self._settings))
                await backoff.pause()
            else:
                self.client = client
                self._connected.set()
                log.info("producer connected", servers=self._settings.kafka_bootstrap_servers)
                return

    def _report(self, failure: str) -> None:
        if failure != self.failure:
            log.warning("producer connection failed", reason=failure)
        self.failure = failure


def _producer_options(settings: KafkaSettings) -> dict[str, Any]:
    compression = settings.kafka_compression
    return {
        **client_options(settings),
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": settings.kafka_linger_ms,
        "compression_type": None if compression == "none" else compression,
        "max_batch_size": min(_BATCH_BYTES, settings.kafka_max_message_bytes),
        "max_request_size": forwarded_limit(settings),
    }


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.stop()
    except Exception as error:  # its senders have their errors, and nobody uses it again
        log.warning("producer did not close cleanly", error=f"{type(error).__name__}: {error}")
        await client.client.close()
