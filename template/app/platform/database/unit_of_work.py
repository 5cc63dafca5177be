"""The unit of work: one transaction, and the events that it publishes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.platform.events.event import BaseEvent


class EventPublisher(Protocol):
    """The interface through which services and handlers publish events."""

    async def publish(self, event: BaseEvent) -> None:
        """Publish `event` with the current transaction: it is sent only if that commits."""


class TransactionalPublisher(EventPublisher, Protocol):
    """A publisher bound to one transaction."""

    async def after_commit(self) -> None:
        """Send the published events, or have them sent: the transaction is durable.

        Never raises for an event that cannot be sent, because nothing can be rolled back. Without an
        outbox it takes up to KAFKA_SEND_TIMEOUT_SECONDS; then the events are lost, and reported.
        """

    async def has_committed(self, error: BaseException) -> bool:
        """Return whether the transaction is durable although `error` ended its block.

        Raises only CancelledError. Events of an unknown outcome are reported.
        """


BindPublisher = Callable[[AsyncSession], TransactionalPublisher]


@dataclass(frozen=True)
class UnitOfWork:
    """A session and a publisher that share a transaction. The boundary commits it."""

    session: AsyncSession
    events: EventPublisher


class UnitOfWorkFactory:
    """A factory of units of work. Nothing else commits business transactions."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], bind: BindPublisher) -> None:
        self._sessions = sessions
        self._bind = bind

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[UnitOfWork]:
        """Begin a transaction that commits at the end of the block, and rolls back on an exception.

        Its events are sent at the end of the block, too. Without an outbox and during an outage of
        the broker, that takes up to KAFKA_SEND_TIMEOUT_SECONDS; then the block ends normally,
        although the events are lost (app/platform/kafka/publisher.py). If the answer to COMMIT is
        lost and there are events to send, the server is asked for the outcome, and the block ends
        accordingly.
        """
        publisher: TransactionalPublisher | None = None
        try:
            async with self._sessions() as session:
                publisher = self._bind(session)
                async with session.begin():
                    yield UnitOfWork(session, publisher)
        except BaseException as error:
            if publisher is None or not await publisher.has_committed(error):
                raise
            if not isinstance(error, Exception):  # cancelled while it committed
                await publisher.after_commit()
                raise
        await publisher.after_commit()
