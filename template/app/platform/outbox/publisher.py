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

# The key of a session's entries in its `info`.
_ENTRIES = "outbox"

# Inline, because nobody needs the new ids.
_INSERT = insert(table_of(OutboxRow)).inline()


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
        self._entries: list[_Entry] = self._session.info.setdefault(_ENTRIES, [])

    async def publish(self, event: BaseEvent) -> None:
        """Raise MessageTooLarge, so that a transaction whose event cannot be sent fails."""
        with creating(event, self._registry):
            message = encode_within(self._max_bytes, event, self._registry, tracing.current())
        bucket = bucket_of(message.topic, message.key or b"", self._buckets)
        self._entries.append(_Entry(message, bucket, self._session.get_nested_transaction()))

    async def after_commit(self) -> None:
        if not self._entries:
            return
        self._published.name(entry.bucket for entry in self._entries)
        for entry in self._entries:
            key = (entry.message.key or b"").decode("utf-8", "replace")
            log.info("event stored in the outbox", topic=entry.message.topic, key=key)
        self._entries.clear()  # the session may begin another transaction

    async def has_committed(self, error: BaseException) -> bool:
        """Return False: the rows are committed or rolled back with the transaction, so the outcome
        does not matter."""
        return False


# These listen to all sessions, because to listen to each one costs a third of its INSERT.


@event.listens_for(Session, "before_commit")
def _write_entries(session: Session) -> None:
    """Insert the entries that have no row yet, right before a commit or the end of a savepoint."""
    new = [entry for entry in session.info.get(_ENTRIES, ()) if entry.written_in is None]
    if not new:
        return
    transaction = session.get_nested_transaction() or session.get_transaction()
    for entry in new:
        entry.written_in = transaction
    session.execute(_INSERT, [as_row(entry.message, entry.bucket) for entry in new])


@event.listens_for(Session, "after_soft_rollback")
def _forget_entries(session: Session, ended: SessionTransaction) -> None:
    """Forget the entries that were published in a (sub)transaction that has been rolled back."""
    entries: list[_Entry] = session.info.get(_ENTRIES, [])
    if ended.parent is None:
        entries.clear()
    entries[:] = [entry for entry in entries if not _is_within(entry.published_in, ended)]
    for entry in entries:
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
