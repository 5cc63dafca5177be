"""The relays' statements: take, give back and set aside rows of the outbox."""

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
    bounds_of,
    bucket_of,
    division_of,
    order_key,
)

_HEADERS = ", ".join(HEADER_COLUMNS.values())
_ALL = f"bucket, topic, key, value, headers, {_HEADERS}, attempts, created_at"
# As text, for those that are the same in many rows are parsed once.
_READ = f"id, attempts, bucket, topic, key, value, CAST(headers AS text) AS headers, {_HEADERS}"


class Pending(NamedTuple):
    """A row of the outbox, and the message that it holds."""

    id: int
    bucket: int
    attempts: int
    order_key: OrderKey
    message: Message


# The table is empty at one moment and holds a million rows at the next, so its statistics are
# always wrong: every plan has to use the indices, and no join may compare each row with each other.
# A relay that loses its last commits in a crash of the server sends those rows again, so it need not
# wait for the disk.
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
    """Bound this transaction. Nothing outlives it, so it also works behind a transaction pooler."""
    limits = {
        "statement": str(int(statement_seconds * 1000)),
        "idle": str(int(idle_seconds * 1000)),
    }
    await connection.execute(_TRANSACTION, limits)


# One step of the index for each bucket that has rows, however many rows those are.
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
    """The buckets that have rows. Those that nobody has locked yet get their row to lock."""
    found = (await connection.execute(_WAITING)).all()
    new = [row.bucket for row in found if not row.known]
    if new:
        await connection.execute(_ADD_BUCKETS, {"buckets": new})
    return [row.bucket for row in found]


_LOCK = text(
    "SELECT bucket FROM outbox_buckets WHERE bucket = ANY(:buckets) FOR UPDATE SKIP LOCKED"
).bindparams(bindparam("buckets", type_=ARRAY(Integer)))


async def lock(connection: AsyncConnection, buckets: Sequence[int]) -> list[int]:
    """Those of `buckets` that no other relay has; until the transaction ends they are ours.

    Read the rows in a later statement: one that locks as well would see what was there before.
    """
    return list((await connection.execute(_LOCK, {"buckets": list(buckets)})).scalars())


def _oldest(blocked: str = "", restriction: str = "") -> str:
    # Rows of another division of the buckets may hold earlier events of our keys, so nothing that
    # is younger than they are is taken before them.
    return f"""
        {blocked}
        SELECT r.*, EXISTS (SELECT FROM outbox_parked) AS any_parked
        FROM unnest(:buckets) AS b (bucket)
        CROSS JOIN LATERAL (
            SELECT {_READ}, sum(octet_length(value))
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


# A key's first row decides, found once for all of its rows: many may wait for the same topic.
_BLOCKED_KEYS = """
    WITH blocked AS MATERIALIZED (
        SELECT bucket, key, min(id) AS id FROM outbox
        WHERE bucket = ANY(:buckets) AND topic = ANY(:resting)
        GROUP BY bucket, key)
"""
_NOT_RESTING = """
    AND o.topic <> ALL(:resting)
    AND NOT EXISTS (
        SELECT FROM blocked AS e WHERE e.bucket = o.bucket AND e.key = o.key AND e.id <= o.id)
"""
_BUCKETS = bindparam("buckets", type_=ARRAY(Integer))
_OLDEST_ROWS = text(_oldest()).bindparams(_BUCKETS)
_OLDEST_BUT = text(_oldest(_BLOCKED_KEYS, _NOT_RESTING)).bindparams(
    _BUCKETS, bindparam("resting", type_=ARRAY(String))
)


async def oldest(
    connection: AsyncConnection,
    buckets: Sequence[int],
    rows: int,
    size: int,
    resting: Collection[str] = (),
) -> tuple[list[Pending], bool]:
    """The oldest rows of each of `buckets`, which belong to one division, by id; whether any row at
    all is parked.

    At most `rows` rows and about `size` bytes of each bucket. Keys with a row for one of the
    topics that are `resting` are left out from that row on.
    """
    first, after = bounds_of(buckets[0])
    values: dict[str, Any] = {
        "buckets": list(buckets),
        "first": first,
        "after": after,
        "rows": rows,
        "bytes": size,
    }
    if resting:
        found = await connection.execute(_OLDEST_BUT, {**values, "resting": list(resting)})
    else:
        found = await connection.execute(_OLDEST_ROWS, values)
    rows_found = found.all()
    return [_pending(tuple(row)) for row in rows_found], any(
        row.any_parked for row in rows_found[:1]
    )


_HEADERS_FROM = 7
_HEADERS_TO = _HEADERS_FROM + len(HEADER_COLUMNS)


def _pending(row: tuple[Any, ...]) -> Pending:
    number, attempts, bucket, topic, key, value, others = row[:_HEADERS_FROM]
    message = as_message(topic, key, value, others, row[_HEADERS_FROM:_HEADERS_TO])
    return Pending(number, bucket, attempts, order_key(topic, key), message)


_DELETE = text("DELETE FROM outbox WHERE id = ANY(:ids)")
_ATTEMPTED = text("UPDATE outbox SET attempts = attempts + 1 WHERE id = ANY(:ids)")
_IDS = bindparam("ids", type_=ARRAY(BigInteger))


async def delete_sent(connection: AsyncConnection, ids: Sequence[int]) -> None:
    # By the ids that were sent, never by a range: the row of a slower transaction may have a lower
    # id and appear later.
    await connection.execute(_DELETE.bindparams(_IDS), {"ids": list(ids)})


async def count_attempt(connection: AsyncConnection, ids: Sequence[int]) -> None:
    await connection.execute(_ATTEMPTED.bindparams(_IDS), {"ids": list(ids)})


_PARK = text(f"""
    WITH moved AS (DELETE FROM outbox WHERE id = ANY(:ids) RETURNING id, {_ALL})
    INSERT INTO outbox_parked (id, held, reason, {_ALL})
    SELECT moved.id, :held, given.reason, {_ALL}
    FROM moved JOIN unnest(:ids, :reasons) AS given (id, reason) ON given.id = moved.id
""").bindparams(_IDS, bindparam("reasons", type_=ARRAY(String)))


async def park(
    connection: AsyncConnection, reasons: Mapping[int, str], *, held: bool = False
) -> None:
    """Set rows aside, by id, each with its reason."""
    values = {"ids": list(reasons), "reasons": list(reasons.values()), "held": held}
    await connection.execute(_PARK, values)


_PARKED_KEYS = text("SELECT DISTINCT topic, key FROM outbox_parked WHERE key = ANY(:keys)")


async def parked_keys(connection: AsyncConnection, rows: Iterable[Pending]) -> set[OrderKey]:
    """The keys of these rows of which something is parked."""
    keys = list({row.message.key for row in rows})
    found = await connection.execute(
        _PARKED_KEYS.bindparams(bindparam("keys", type_=ARRAY(LargeBinary))), {"keys": keys}
    )
    return {order_key(row.topic, row.key) for row in found}


# Everything of a row but what tells of its parking; it starts again without attempts.
_COLUMNS = [c.name for c in OutboxRow.__table__.columns if c.name != "attempts"]


@dataclass(frozen=True)
class Filter:
    """A choice of parked rows: those that match everything given."""

    ids: Sequence[int] = ()
    topic: str | None = None
    key: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.ids:
            found.append(_in(self.ids))
        if self.topic is not None:
            found.append(ParkedRow.topic == self.topic)
        if self.key is not None:
            found.append(ParkedRow.key == self.key.encode())
        return found


async def find(session: AsyncSession, only: Filter, held: bool | None = None) -> list[ParkedRow]:
    """Parked rows, oldest first; those `held` behind another, those that are not, or both."""
    query = select(ParkedRow).where(*only.conditions()).order_by(ParkedRow.id)
    if held is not None:
        query = query.where(ParkedRow.held.is_(held))
    return list(await session.scalars(query))


async def retry(engine: AsyncEngine, ids: Sequence[int]) -> int:
    """Put rows back into the outbox, to their old places. How many, with those held behind them."""
    async with engine.begin() as connection:
        keys = await _lock_keys(connection, ids)
        back = await _put_back(connection, ids)
        return back + await _put_back(connection, await _free(connection, keys))


async def discard(engine: AsyncEngine, ids: Sequence[int]) -> int:
    """Delete rows for good, and put back those that were held behind them; how many were deleted."""
    async with engine.begin() as connection:
        keys = await _lock_keys(connection, ids)
        gone = await connection.execute(delete(ParkedRow).where(_in(ids)))
        await _put_back(connection, await _free(connection, keys))
        return gone.rowcount


async def _lock_keys(connection: AsyncConnection, ids: Sequence[int]) -> set[OrderKey]:
    """Keep relays away from the keys of these rows for the length of the transaction."""
    rows = await connection.execute(select(ParkedRow.topic, ParkedRow.key).where(_in(ids)))
    messages = {(topic, key) for topic, key in rows}
    known = await connection.scalars(select(OutboxBucket.bucket))
    divisions = {division_of(bucket) for bucket in known}
    buckets = {bucket_of(*message, division) for message in messages for division in divisions}
    await connection.execute(
        select(OutboxBucket.bucket)
        .where(OutboxBucket.bucket == func.any(list(buckets)))
        .order_by(OutboxBucket.bucket)
        .with_for_update()
    )
    return {order_key(topic, key) for topic, key in messages}


async def _free(connection: AsyncConnection, keys: Iterable[OrderKey]) -> list[int]:
    """The rows of `keys` that are held although nothing before them is parked any more."""
    query = select(ParkedRow.id, ParkedRow.topic, ParkedRow.key, ParkedRow.held)
    of_keys = ParkedRow.key == func.any(list({key for _, key in keys}))
    rows = (await connection.execute(query.where(of_keys))).all()
    blocked = {order_key(row.topic, row.key) for row in rows if not row.held}
    free = set(keys) - blocked
    return [row.id for row in rows if row.held and order_key(row.topic, row.key) in free]


async def _put_back(connection: AsyncConnection, ids: Sequence[int]) -> int:
    columns = [getattr(ParkedRow, name) for name in _COLUMNS]
    moved = insert(OutboxRow).from_select(_COLUMNS, select(*columns).where(_in(ids)))
    await connection.execute(moved)
    return (await connection.execute(delete(ParkedRow).where(_in(ids)))).rowcount


def _in(ids: Sequence[int]) -> ColumnElement[bool]:
    # One argument: a statement has at most 32,767, and more rows than that may be held.
    return ParkedRow.id == func.any(list(ids))
