from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import IdempotencyKey


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
