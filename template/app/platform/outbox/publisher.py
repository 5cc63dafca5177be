"""Publishing through the database: an event is a row of the transaction that publishes it."""

from dataclasses import dataclass

import structlog
from sqlalchemy import event, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from app.platform import tracing
from app.platform.background import WakeUp
from app.platform.config import load
from app.platform.database.engine import table_of
from app.platform.database.unit_of_work import BindPublisher
from app.platform.events.event import BaseEvent, EventRegistry
from app.platform.kafka.codec import Message, encode_within
from app.platform.kafka.producer import Producer
from app.platform.kafka.settings import KafkaSettings
from app.platform.kafka.spans import creating
from app.platform.outbox.model import OutboxRow, as_row, bucket_of
from app.platform.outbox.settings import OutboxSettings

log = structlog.get_logger(__name__)

_INSERT = insert(table_of(OutboxRow))


@dataclass
class _Entry:
    """A message, its bucket, the savepoint of its publishing, and the (sub)transaction with its row."""

    message: Message
    bucket: int
    published_in: SessionTransaction | None
    written_in: SessionTransaction | None = None


class OutboxPublisher:
    """A buffer of one transaction's events, inserted together right before the commit.

    So a batch of handlers costs one insert, and a key's ids ascend in the order of publishing. An
    event that was published in a savepoint is rolled back with it. The publisher never commits.
    """

    def __init__(
        self,
        session: AsyncSession,
        registry: EventRegistry,
        settings: OutboxSettings,
        max_bytes: int,
        published: WakeUp,
    ) -> None:
        self._session = session.sync_session
        self._registry = registry
        self._buckets = settings.outbox_buckets
        self._max_bytes = max_bytes
        self._published = published
        self._entries: list[_Entry] = []

    async def publish(self, event: BaseEvent) -> None:
        """Raise MessageTooLarge, so that a transaction whose event cannot be sent fails."""
        with creating(event, self._registry):
            message = encode_within(self._max_bytes, event, self._registry, tracing.current())
        if not self._entries:
            self._listen()
        bucket = bucket_of(message.topic, message.key or b"", self._buckets)
        self._entries.append(_Entry(message, bucket, self._session.get_nested_transaction()))

    async def after_commit(self) -> None:
        if not self._entries:
            return
        self._published.name(entry.bucket for entry in self._entries)
        for entry in self._entries:
            key = (entry.message.key or b"").decode("utf-8", "replace")
            log.info("event stored in the outbox", topic=entry.message.topic, key=key)

    async def has_committed(self, error: BaseException) -> bool:
        """Return False: the rows are committed or rolled back with the transaction, so the outcome
        does not matter."""
        return False

    def _listen(self) -> None:
        # Possibly again, after a rollback emptied the list: SQLAlchemy registers a listener once.
        event.listen(self._session, "before_commit", self._before_commit)
        event.listen(self._session, "after_soft_rollback", self._after_rollback)

    def _before_commit(self, session: Session) -> None:
        transaction = session.get_nested_transaction() or session.get_transaction()
        new = [entry for entry in self._entries if entry.written_in is None]
        for entry in new:
            entry.written_in = transaction
        if new:
            session.execute(_INSERT, [as_row(entry.message, entry.bucket) for entry in new])

    def _after_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        if ended.parent is None:
            self._entries = []
        self._entries = [e for e in self._entries if not _is_within(e.published_in, ended)]
        for entry in self._entries:
            if _is_within(entry.written_in, ended):
                entry.written_in = None


def _is_within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def bind(
    kafka: KafkaSettings, registry: EventRegistry, _producer: Producer, published: WakeUp
) -> BindPublisher:
    """Return the function that makes a session publish through the outbox."""
    settings, max_bytes = load(OutboxSettings), kafka.kafka_max_message_bytes

    def bind_session(session: AsyncSession) -> OutboxPublisher:
        return OutboxPublisher(session, registry, settings, max_bytes, published)

    return bind_session
