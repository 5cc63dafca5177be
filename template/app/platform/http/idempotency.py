"""Idempotency keys: a request that is sent again gets the response of the first time."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel
from sqlalchemy import (
    DateTime,
    Integer,
    LargeBinary,
    String,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from starlette.responses import Response

from app.platform.database.engine import Base, table_of
from app.platform.database.retention import Retention
from app.platform.errors import IdempotencyKeyReused

Work = Callable[[], Awaitable["StoredResponse"]]


class IdempotencyRecord(Base):
    """A request that was processed, and its response.

    The row is inserted before the work and completed after it, in the same transaction. Other
    transactions see it with its response or not at all.
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


_KEYS = table_of(IdempotencyRecord)
_IS_KEY = (_KEYS.c.scope == bindparam("of_scope"), _KEYS.c.key == bindparam("of_key"))
_CLAIM = insert(_KEYS).on_conflict_do_nothing().returning(_KEYS.c.key)
_COMPLETE = (
    update(_KEYS)
    .where(*_IS_KEY)
    .values({name: bindparam(name) for name in ("status", "headers", "body")})
)
_FIND = select(_KEYS.c.fingerprint, _KEYS.c.status, _KEYS.c.headers, _KEYS.c.body).where(*_IS_KEY)


@dataclass(frozen=True)
class StoredResponse:
    """A response, as it is sent the first time and every other time."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, status: int, body: BaseModel, **headers: str) -> "StoredResponse":
        return cls(status, headers, body.model_dump_json().encode())


@dataclass(frozen=True)
class PreviousRequest:
    """An earlier request with the same key."""

    fingerprint: bytes
    response: StoredResponse


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def claim(self, scope: str, key: str, fingerprint: bytes) -> PreviousRequest | None:
        """Claim the key for this transaction, or return the earlier request that has it.

        Waits for a concurrent transaction with the same key. If that rolls back, the key is free.
        """
        new = {"scope": scope, "key": key, "fingerprint": fingerprint}
        while await self._session.scalar(_CLAIM, new) is None:
            earlier = await self._find(scope, key)
            if earlier is not None:
                return earlier
        return None

    async def complete(self, scope: str, key: str, response: StoredResponse) -> None:
        await self._session.execute(_COMPLETE, {"of_scope": scope, "of_key": key, **vars(response)})

    async def _find(self, scope: str, key: str) -> PreviousRequest | None:
        found = await self._session.execute(_FIND, {"of_scope": scope, "of_key": key})
        row = found.one_or_none()
        if row is None:
            return None
        fingerprint, status, headers, body = row
        return PreviousRequest(fingerprint, StoredResponse(status or 0, headers or {}, body or b""))


# Callers may repeat a request for this long.
RETENTION = Retention(_KEYS, "created_at", timedelta(days=1), lock=0x1DE4)


class Idempotency:
    """Stores responses in the transaction of the work, so that neither exists without the other."""

    def __init__(self, keys: IdempotencyRepository, key: str | None) -> None:
        self._keys = keys
        self._key = key

    async def respond(self, scope: str, request: str, work: Work) -> Response:
        """Do `work` and return its response, or the stored one if the key was sent before.

        `request` identifies the content of the request. Raises IdempotencyKeyReused if the key
        belongs to another request in `scope`.
        """
        if self._key is None:
            response = await work()
        else:
            fingerprint = hashlib.sha256(request.encode()).digest()
            response = await self.run_once(scope, self._key, fingerprint, work)
        return Response(response.body, response.status, response.headers, "application/json")

    async def run_once(
        self, scope: str, key: str, fingerprint: bytes, work: Work
    ) -> StoredResponse:
        """Do `work` and store its response, or return the one stored for `key` in `scope`.

        Errors are not stored: failed work can be done again. Raises IdempotencyKeyReused if the
        earlier request has another fingerprint.
        """
        earlier = await self._keys.claim(scope, key, fingerprint)
        if earlier is None:
            response = await work()
            await self._keys.complete(scope, key, response)
            return response
        if earlier.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return earlier.response
