"""The statements of relays and operators: lock, read, delete and park rows of the outbox."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

from app.platform.kafka.codec import Message
from app.platform.outbox.model import (
    HEADER_COLUMNS,
    OrderKey,
    OutboxBucket,
    OutboxRow,
    ParkedRow,
    as_message,
    bucket_count_of,
    bucket_of,
    bucket_range,
    order_key,
)

_HEADERS = ", ".join(HEADER_COLUMNS.values())
_PARKED_COLUMNS = f"bucket, topic, key, value, headers, {_HEADERS}, attempts, created_at"
# JSON as text: values that many rows share are parsed once.
_READ_COLUMNS = (
    f"id, attempts, bucket, topic, key, value, CAST(headers AS text) AS headers, {_HEADERS}"
)


class PendingRow(NamedTuple):
    """A row of the outbox, with its message."""

    id: int
    bucket: int
    attempts: int
    order_key: OrderKey
    message: Message


# The table may be empty now and have a million rows in a second, so its statistics are always wrong:
# every plan has to use the indexes, and no join may compare each row with each other.
# If a crash of the server loses a relay's last commits, their rows are sent again, so a commit need
# not wait for the disk.
_TRANSACTION = text("""
    SELECT set_config('statement_timeout', :statement, true),
        set_config('idle_in_transaction_session_timeout', :idle, true),
        set_config('synchronous_commit', 'off', true),
        set_config('enable_seqscan', 'off', true),
        set_config('enable_bitmapscan', 'off', true),
        set_config('enable_nestloop', 'off', true),
        set_config('jit', 'off', true)
""")


async def limit_transaction(
    connection: AsyncConnection, statement_seconds: float, idle_seconds: float
) -> None:
    """Limit this transaction only, so that it also works behind a transaction pooler."""
    limits = {
        "statement": str(int(statement_seconds * 1000)),
        "idle": str(int(idle_seconds * 1000)),
    }
    await connection.execute(_TRANSACTION, limits)


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


_LOCK = text(
    "SELECT bucket FROM outbox_buckets WHERE bucket = ANY(:buckets) FOR UPDATE SKIP LOCKED"
).bindparams(bindparam("buckets", type_=ARRAY(Integer)))


async def lock_buckets(connection: AsyncConnection, buckets: Sequence[int]) -> list[int]:
    """Lock the buckets that no other relay has, until the transaction ends; return them.

    Read their rows in a later statement: this one has the snapshot from before the lock.
    """
    return list((await connection.execute(_LOCK, {"buckets": list(buckets)})).scalars())


def _oldest_rows(with_clause: str = "", restriction: str = "") -> str:
    # Rows written with another number of buckets may hold earlier events of the same keys, so no
    # younger row is taken before them.
    return f"""
        {with_clause}
        SELECT r.*, EXISTS (SELECT FROM outbox_parked) AS any_parked
        FROM unnest(:buckets) AS b (bucket)
        CROSS JOIN LATERAL (
            SELECT {_READ_COLUMNS}, sum(octet_length(value))
                OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS bytes
            FROM outbox AS o
            WHERE o.bucket = b.bucket
              AND CASE WHEN EXISTS (SELECT FROM outbox WHERE bucket < :first)
                         OR EXISTS (SELECT FROM outbox WHERE bucket >= :after)
                  THEN o.id < (SELECT min(id) FROM outbox WHERE bucket < :first OR bucket >= :after)
                  ELSE true END
              {restriction}
            ORDER BY id LIMIT :rows
        ) AS r
        WHERE r.bytes - octet_length(r.value) < :bytes
        ORDER BY r.id
    """


# The first such row of a key decides for all rows behind it: many may wait for the same topic.
_WAITING_KEYS = """
    WITH waiting AS MATERIALIZED (
        SELECT bucket, key, min(id) AS id FROM outbox
        WHERE bucket = ANY(:buckets) AND topic = ANY(:backing_off)
        GROUP BY bucket, key)
"""
_NOT_BACKING_OFF = """
    AND o.topic <> ALL(:backing_off)
    AND NOT EXISTS (
        SELECT FROM waiting AS e WHERE e.bucket = o.bucket AND e.key = o.key AND e.id <= o.id)
"""
_BUCKETS = bindparam("buckets", type_=ARRAY(Integer))
_OLDEST_ROWS = text(_oldest_rows()).bindparams(_BUCKETS)
_OLDEST_OTHER_ROWS = text(_oldest_rows(_WAITING_KEYS, _NOT_BACKING_OFF)).bindparams(
    _BUCKETS, bindparam("backing_off", type_=ARRAY(String))
)


async def oldest_rows(
    connection: AsyncConnection,
    buckets: Sequence[int],
    rows: int,
    size: int,
    backing_off: Collection[str] = (),
) -> tuple[list[PendingRow], bool]:
    """Return the oldest rows of each bucket in the order of their ids, and whether any row is parked.

    The buckets have the same count. At most `rows` rows and about `size` bytes are read of each.
    A key with a row for a topic that is `backing_off` is left out from that row on.
    """
    first, after = bucket_range(buckets[0])
    values: dict[str, Any] = {
        "buckets": list(buckets),
        "first": first,
        "after": after,
        "rows": rows,
        "bytes": size,
    }
    if backing_off:
        values["backing_off"] = list(backing_off)
        found = await connection.execute(_OLDEST_OTHER_ROWS, values)
    else:
        found = await connection.execute(_OLDEST_ROWS, values)
    rows_found = found.all()
    return [_pending_row(tuple(row)) for row in rows_found], any(
        row.any_parked for row in rows_found[:1]
    )


_HEADERS_FROM = 7
_HEADERS_TO = _HEADERS_FROM + len(HEADER_COLUMNS)


def _pending_row(row: tuple[Any, ...]) -> PendingRow:
    number, attempts, bucket, topic, key, value, others = row[:_HEADERS_FROM]
    message = as_message(topic, key, value, others, row[_HEADERS_FROM:_HEADERS_TO])
    return PendingRow(number, bucket, attempts, order_key(topic, key), message)


_DELETE = text("DELETE FROM outbox WHERE id = ANY(:ids)")
_ATTEMPTED = text("UPDATE outbox SET attempts = attempts + 1 WHERE id = ANY(:ids)")
_IDS = bindparam("ids", type_=ARRAY(BigInteger))


async def delete_sent(connection: AsyncConnection, ids: Sequence[int]) -> None:
    # By the ids that were sent, never by a range: a slower transaction may commit a lower id later.
    await connection.execute(_DELETE.bindparams(_IDS), {"ids": list(ids)})


async def count_attempt(connection: AsyncConnection, ids: Sequence[int]) -> None:
    await connection.execute(_ATTEMPTED.bindparams(_IDS), {"ids": list(ids)})


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
    """Criteria of parked rows. A row has to match all that are given."""

    ids: Sequence[int] = ()
    topic: str | None = None
    key: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.ids:
            found.append(_has_id(self.ids))
        if self.topic is not None:
            found.append(ParkedRow.topic == self.topic)
        if self.key is not None:
            found.append(ParkedRow.key == self.key.encode())
        return found


async def find_parked(
    session: AsyncSession, only: ParkedFilter, blocked: bool | None = None
) -> list[ParkedRow]:
    """Find parked rows, oldest first: those `blocked` by another, those that are not, or both."""
    query = select(ParkedRow).where(*only.conditions()).order_by(ParkedRow.id)
    if blocked is not None:
        query = query.where(ParkedRow.blocked.is_(blocked))
    return list(await session.scalars(query))


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
    known = await connection.scalars(select(OutboxBucket.bucket))
    counts = {bucket_count_of(bucket) for bucket in known}
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
