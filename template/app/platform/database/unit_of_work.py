"""The unit of work: one transaction, and the events that go out with it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.platform.events.event import BaseEvent


class EventPublisher(Protocol):
    """The seam through which services and handlers publish events."""

    async def publish(self, event: BaseEvent) -> None:
        """Take `event` into the current transaction: it goes out only if that commits."""


class TransactionalPublisher(EventPublisher, Protocol):
    """A publisher bound to one transaction."""

    async def after_commit(self) -> None:
        """The transaction is durable: see to it that what was published goes out.

        Never raises for what cannot be sent: nothing can be taken back any more. Without an outbox
        it takes up to KAFKA_SEND_TIMEOUT_SECONDS, after which the events are lost, and reported.
        """

    async def has_committed(self, error: BaseException) -> bool:
        """Return whether the transaction is durable although `error` ended its block.

        Raises only CancelledError. If nobody can say, the events are reported.
        """


BindPublisher = Callable[[AsyncSession], TransactionalPublisher]


@dataclass(frozen=True)
class UnitOfWork:
    """A session and a publisher that share a transaction. It never commits: the boundary does."""

    session: AsyncSession
    events: EventPublisher


class UnitOfWorkFactory:
    """Opens units of work. The only place in the service that commits business transactions."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], bind: BindPublisher) -> None:
        self._sessions = sessions
        self._bind = bind

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[UnitOfWork]:
        """A transaction that commits at the end of the block and rolls back on any exception.

        The end of the block is also when its events go out. Without an outbox that takes up to
        KAFKA_SEND_TIMEOUT_SECONDS while the broker is away, and then the block ends as it always
        does, though the events are lost (see app/platform/kafka/publisher.py). If the answer to COMMIT is lost
        and there are events to send, the server is asked for the outcome: the block ends as if the
        answer had come.
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
