"""Doing a request once, however often it is sent."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from app.errors import Unprocessable
from app.repositories.idempotency import Answer, IdempotencyRepository

# How long a request can be repeated. Each new key takes some old ones with it, so the table holds
# what is kept and no more, with nobody else to look after it.
KEEP = timedelta(days=1)
EXPIRED_AT_ONCE = 10


class IdempotencyKeyReused(Unprocessable):
    title = "This Idempotency-Key belongs to another request"


class Idempotency:
    """Keeps answers in the transaction of the work, so that neither exists without the other."""

    def __init__(self, keys: IdempotencyRepository) -> None:
        self._keys = keys

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
            raise IdempotencyKeyReused(
                "the Idempotency-Key was sent before with another body: use a new one",
                pointer="/Idempotency-Key",
                location="header",
            )
        return earlier.answer
