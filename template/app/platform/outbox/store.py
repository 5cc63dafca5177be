"""The statements of relays and operators that find and park rows of the outbox."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    String,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from app.platform.outbox.model import (
    HEADER_COLUMNS,
    OrderKey,
    OutboxBucket,
    OutboxRow,
    ParkedRow,
    bucket_count_of,
    bucket_of,
    order_key,
)
from app.platform.outbox.transaction import PendingRow

_HEADERS = ", ".join(HEADER_COLUMNS.values())
_PARKED_COLUMNS = f"bucket, topic, key, value, headers, {_HEADERS}, attempts, created_at"

# One step of the index for each bucket with rows, however many rows it has.
_WAITING = text("""
    WITH RECURSIVE waiting AS (
        (SELECT bucket FROM outbox ORDER BY bucket LIMIT 1)
        UNION ALL
        SELECT (SELECT o.bucket FROM outbox AS o WHERE o.bucket > w.bucket
                ORDER BY o.bucket LIMIT 1)
        FROM waiting AS w WHERE w.bucket IS NOT NULL
    )
    SELECT w.bucket, b.bucket IS NOT NULL AS known
    FROM waiting AS w LEFT JOIN outbox_buckets AS b ON b.bucket = w.bucket
    WHERE w.bucket IS NOT NULL
""")
_ADD_BUCKETS = text(
    "INSERT INTO outbox_buckets SELECT unnest(:buckets) ON CONFLICT DO NOTHING"
).bindparams(bindparam("buckets", type_=ARRAY(Integer)))


async def waiting_buckets(connection: AsyncConnection) -> list[int]:
    """Return the buckets that have rows. New ones get their row in the table of locks."""
    found = (await connection.execute(_WAITING)).all()
    new = [row.bucket for row in found if not row.known]
    if new:
        await connection.execute(_ADD_BUCKETS, {"buckets": new})
    return [row.bucket for row in found]


async def known_buckets(connection: AsyncConnection) -> list[int]:
    """Return the buckets that can be locked."""
    return list(await connection.scalars(select(OutboxBucket.bucket)))


_IDS = bindparam("ids", type_=ARRAY(BigInteger))
_ATTEMPTED = text("UPDATE outbox SET attempts = attempts + 1 WHERE id = ANY(:ids)").bindparams(_IDS)


async def count_attempt(connection: AsyncConnection, ids: Sequence[int]) -> None:
    await connection.execute(_ATTEMPTED, {"ids": list(ids)})


_PARK = text(f"""
    WITH moved AS (DELETE FROM outbox WHERE id = ANY(:ids) RETURNING id, {_PARKED_COLUMNS})
    INSERT INTO outbox_parked (id, held, reason, {_PARKED_COLUMNS})
    SELECT moved.id, :blocked, given.reason, {_PARKED_COLUMNS}
    FROM moved JOIN unnest(:ids, :reasons) AS given (id, reason) ON given.id = moved.id
""").bindparams(_IDS, bindparam("reasons", type_=ARRAY(String)))


async def park(
    connection: AsyncConnection, reasons: Mapping[int, str], *, blocked: bool = False
) -> None:
    """Move rows to `outbox_parked`, by id, each with its reason."""
    values = {"ids": list(reasons), "reasons": list(reasons.values()), "blocked": blocked}
    await connection.execute(_PARK, values)


_PARKED_KEYS = text("SELECT DISTINCT topic, key FROM outbox_parked WHERE key = ANY(:keys)")


async def parked_keys(connection: AsyncConnection, rows: Iterable[PendingRow]) -> set[OrderKey]:
    """Return the keys of these rows that have a parked event."""
    keys = list({row.message.key for row in rows})
    found = await connection.execute(
        _PARKED_KEYS.bindparams(bindparam("keys", type_=ARRAY(LargeBinary))), {"keys": keys}
    )
    return {order_key(row.topic, row.key) for row in found}


# A parked row goes back without its attempts.
_RESTORED_COLUMNS = [c.name for c in OutboxRow.__table__.columns if c.name != "attempts"]


@dataclass(frozen=True)
class ParkedFilter:
    """Criteria of parked rows. A row has to match all that are given, and its id is above `after`."""

    ids: Sequence[int] = ()
    topic: str | None = None
    key: str | None = None
    after: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.ids:
            found.append(_has_id(self.ids))
        if self.topic is not None:
            found.append(ParkedRow.topic == self.topic)
        if self.key is not None:
            found.append(ParkedRow.key == self.key.encode())
        if self.after is not None:
            found.append(ParkedRow.id > self.after)
        return found


class NotParked(Exception):
    """Events that an action cannot change: they are not parked, or only blocked by a parked one."""


async def find_parked(
    session: AsyncSession,
    only: ParkedFilter,
    blocked: bool | None = None,
    limit: int | None = None,
) -> list[ParkedRow]:
    """Find parked rows, oldest first: those `blocked` by another, those that are not, or both.

    With `limit`, only the first so many.
    """
    query = select(ParkedRow).where(*only.conditions()).order_by(ParkedRow.id).limit(limit)
    if blocked is not None:
        query = query.where(ParkedRow.blocked.is_(blocked))
    return list(await session.scalars(query))


async def count_parked(session: AsyncSession, only: ParkedFilter, blocked: bool) -> int:
    """Count the parked rows that are `blocked` by another, or those that are not."""
    query = select(func.count()).select_from(ParkedRow).where(*only.conditions())
    return await session.scalar(query.where(ParkedRow.blocked.is_(blocked))) or 0


async def select_parked(session: AsyncSession, only: ParkedFilter) -> list[ParkedRow]:
    """Find the rows that `retry` and `discard` may change. Raises NotParked, with the ids."""
    rows = await find_parked(session, only, blocked=False)
    if missing := set(only.ids) - {row.id for row in rows}:
        raise NotParked(f"not parked: {', '.join(map(str, sorted(missing)))}")
    return rows


async def retry(engine: AsyncEngine, ids: Sequence[int]) -> int:
    """Move rows back into the outbox, with those that they blocked; return the count of all."""
    async with engine.begin() as connection:
        keys = await _lock_keys(connection, ids)
        restored = await _restore(connection, ids)
        return restored + await _restore(connection, await _unblocked_ids(connection, keys))


async def discard(engine: AsyncEngine, ids: Sequence[int]) -> int:
    """Delete rows, and move those that they blocked back; return the count of the deleted."""
    async with engine.begin() as connection:
        keys = await _lock_keys(connection, ids)
        deleted = await connection.execute(delete(ParkedRow).where(_has_id(ids)))
        await _restore(connection, await _unblocked_ids(connection, keys))
        return deleted.rowcount


async def _lock_keys(connection: AsyncConnection, ids: Sequence[int]) -> set[OrderKey]:
    """Lock the buckets of these rows' keys against relays, until the transaction ends."""
    rows = await connection.execute(select(ParkedRow.topic, ParkedRow.key).where(_has_id(ids)))
    messages = {(topic, key) for topic, key in rows}
    counts = {bucket_count_of(bucket) for bucket in await known_buckets(connection)}
    buckets = {bucket_of(*message, count) for message in messages for count in counts}
    await connection.execute(
        select(OutboxBucket.bucket)
        .where(OutboxBucket.bucket == func.any(list(buckets)))
        .order_by(OutboxBucket.bucket)
        .with_for_update()
    )
    return {order_key(topic, key) for topic, key in messages}


async def _unblocked_ids(connection: AsyncConnection, keys: Iterable[OrderKey]) -> list[int]:
    """Return the blocked rows of `keys` that no longer have a parked one before them."""
    query = select(ParkedRow.id, ParkedRow.topic, ParkedRow.key, ParkedRow.blocked.label("blocked"))
    of_keys = ParkedRow.key == func.any(list({key for _, key in keys}))
    rows = (await connection.execute(query.where(of_keys))).all()
    blocking = {order_key(row.topic, row.key) for row in rows if not row.blocked}
    free = set(keys) - blocking
    return [row.id for row in rows if row.blocked and order_key(row.topic, row.key) in free]


async def _restore(connection: AsyncConnection, ids: Sequence[int]) -> int:
    columns = [getattr(ParkedRow, name) for name in _RESTORED_COLUMNS]
    moved = insert(OutboxRow).from_select(_RESTORED_COLUMNS, select(*columns).where(_has_id(ids)))
    await connection.execute(moved)
    return (await connection.execute(delete(ParkedRow).where(_has_id(ids)))).rowcount


def _has_id(ids: Sequence[int]) -> ColumnElement[bool]:
    # One argument: a statement has at most 32,767, and more rows than that may be blocked.
    return ParkedRow.id == func.any(list(ids))
