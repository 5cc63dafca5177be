"""Doing a request once, however often it is sent: its key, and the answer that was given."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, Integer, LargeBinary, String, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from starlette.responses import Response

from app.platform.database.engine import Base
from app.platform.errors import Unprocessable


class IdempotencyKey(Base):
    """A request that was answered, and its answer.

    The row is inserted before the work and completed after it, in one transaction: others see it
    with its answer or not at all.
    """

    __tablename__ = "idempotency_keys"

    scope: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    status: Mapped[int | None] = mapped_column(Integer)
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), index=True
    )


@dataclass(frozen=True)
class Answer:
    """A response as it went out, and goes out again for the same request."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answered:
    """The request that came before with the same key, by its fingerprint, and its answer."""

    fingerprint: bytes
    answer: Answer


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def claim(self, scope: str, key: str, fingerprint: bytes) -> Answered | None:
        """Take the key for this transaction, or return what was answered to an earlier request.

        Waits for a transaction that holds the key. If that rolls back, the key is free again.
        """
        new = insert(IdempotencyKey).values(scope=scope, key=key, fingerprint=fingerprint)
        taken = new.on_conflict_do_nothing().returning(IdempotencyKey.key)
        while await self._session.scalar(taken) is None:
            earlier = await self._find(scope, key)
            if earlier is not None:
                return earlier
        return None

    async def complete(self, scope: str, key: str, answer: Answer) -> None:
        await self._session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.scope == scope, IdempotencyKey.key == key)
            .values(status=answer.status, headers=answer.headers, body=answer.body)
            .execution_options(synchronize_session=False)
        )

    async def delete_expired(self, keep: timedelta, limit: int) -> None:
        """Delete up to `limit` keys older than `keep`; those that others delete are left to them."""
        expired = (
            select(IdempotencyKey.scope, IdempotencyKey.key)
            .where(IdempotencyKey.created_at < func.now() - keep)
            .order_by(IdempotencyKey.created_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        await self._session.execute(
            delete(IdempotencyKey)
            .where(tuple_(IdempotencyKey.scope, IdempotencyKey.key).in_(expired))
            .execution_options(synchronize_session=False)
        )

    async def _find(self, scope: str, key: str) -> Answered | None:
        query = select(
            IdempotencyKey.fingerprint,
            IdempotencyKey.status,
            IdempotencyKey.headers,
            IdempotencyKey.body,
        ).where(IdempotencyKey.scope == scope, IdempotencyKey.key == key)
        row = (await self._session.execute(query)).one_or_none()
        if row is None:
            return None
        fingerprint, status, headers, body = row
        return Answered(fingerprint, Answer(status or 0, headers or {}, body or b""))


# How long a request can be repeated. Each new key takes some old ones with it, so the table holds
# what is kept and no more, with nobody else to look after it.
KEEP = timedelta(days=1)
EXPIRED_AT_ONCE = 10


class IdempotencyKeyReused(Unprocessable):
    title = "This Idempotency-Key belongs to another request"

    def __init__(self) -> None:
        super().__init__(
            "the Idempotency-Key was sent before with another body: use a new one",
            pointer="/Idempotency-Key",
            location="header",
        )


class Idempotency:
    """Keeps answers in the transaction of the work, so that neither exists without the other."""

    def __init__(self, keys: IdempotencyRepository) -> None:
        self._keys = keys

    async def respond(
        self, scope: str, key: str | None, request: str, work: Callable[[], Awaitable[Answer]]
    ) -> Response:
        """The answer of `work` as a response: with a `key`, of the first time that it was done.

        `request` is what tells one request in `scope` from another. Raises IdempotencyKeyReused.
        """
        if key is None:
            answer = await work()
        else:
            fingerprint = hashlib.sha256(request.encode()).digest()
            answer = await self.once(scope, key, fingerprint, work)
        return Response(answer.body, answer.status, answer.headers, "application/json")

    async def once(
        self, scope: str, key: str, fingerprint: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Do `work`, unless `key` was answered before in `scope`: then that answer.

        Errors are not kept: `work` is done again when it failed. Raises IdempotencyKeyReused when
        the earlier request was another one, by its fingerprint.
        """
        earlier = await self._keys.claim(scope, key, fingerprint)
        if earlier is None:
            answer = await work()
            await self._keys.complete(scope, key, answer)
            await self._keys.delete_expired(KEEP, EXPIRED_AT_ONCE)
            return answer
        if earlier.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return earlier.answer
