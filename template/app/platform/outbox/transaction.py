"""The transactions of relays: the locks come with BEGIN, and the deletes with COMMIT.

So a batch takes three round trips: a latency and a processor time that every event has to pay where
few of them share a batch.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.platform.database.errors import (
    NO_ANSWER,
    DatabaseUnavailable,
    ErrorCategory,
    categorize,
)
from app.platform.kafka.codec import Message
from app.platform.outbox.model import (
    HEADER_COLUMNS,
    OrderKey,
    as_message,
    bucket_range,
    order_key,
)


class PendingRow(NamedTuple):
    """A row of the outbox, with its message."""

    id: int
    bucket: int
    attempts: int
    order_key: OrderKey
    message: Message


class OldestRows(NamedTuple):
    """The oldest rows of the locked buckets, in the order of their ids."""

    locked: Collection[int]
    rows: Sequence[PendingRow]
    any_parked: bool


# The limits are the transaction's only, so that they also work behind a transaction pooler.
#
# The table may be empty now and have a million rows in a second, so its statistics are always wrong:
# every plan has to use the indexes, and no join may compare each row with each other.
# If a crash of the server loses a relay's last commits, their rows are sent again, so a commit need
# not wait for the disk.
_BEGIN = """
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SELECT set_config('statement_timeout', '{statement:.0f}', true),
        set_config('idle_in_transaction_session_timeout', '{idle:.0f}', true),
        set_config('synchronous_commit', 'off', true),
        set_config('enable_seqscan', 'off', true),
        set_config('enable_bitmapscan', 'off', true),
        set_config('enable_nestloop', 'off', true),
        set_config('jit', 'off', true);
"""
# The rows are read by a later statement: the snapshot of this one is from before the lock.
_LOCK = """
    SELECT set_config('outbox.locked', CAST(ARRAY(
        SELECT bucket FROM outbox_buckets
        WHERE bucket = ANY({buckets}) FOR UPDATE SKIP LOCKED
    ) AS text), true);
"""
# By the ids that were sent, never by a range: a slower transaction may commit a lower id later.
_DELETE = "DELETE FROM outbox WHERE id = ANY({ids});"

_HEADERS = ", ".join(HEADER_COLUMNS.values())
# JSON as text: values that many rows share are parsed once.
_READ_COLUMNS = (
    f"id, attempts, bucket, topic, key, value, CAST(headers AS text) AS headers, {_HEADERS}"
)


def _oldest_rows(with_clause: str = "", restriction: str = "") -> str:
    # Rows written with another number of buckets may hold earlier events of the same keys, so no
    # younger row is taken before them.
    return f"""
        {with_clause}
        SELECT r.*, EXISTS (SELECT FROM outbox_parked) AS any_parked, b.bucket
        FROM unnest(CAST(current_setting('outbox.locked') AS int[])) AS b (bucket)
        LEFT JOIN LATERAL (
            SELECT {_READ_COLUMNS}, sum(octet_length(value))
                OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS bytes
            FROM outbox AS o
            WHERE o.bucket = b.bucket
              AND CASE WHEN EXISTS (SELECT FROM outbox WHERE bucket < $3)
                         OR EXISTS (SELECT FROM outbox WHERE bucket >= $4)
                  THEN o.id < (SELECT min(id) FROM outbox WHERE bucket < $3 OR bucket >= $4)
                  ELSE true END
              {restriction}
            ORDER BY id LIMIT $1
        ) AS r ON r.bytes - octet_length(r.value) < $2
        ORDER BY r.id
    """


# The first such row of a key decides for all rows behind it: many may wait for the same topic.
_WAITING_KEYS = """
    WITH waiting AS MATERIALIZED (
        SELECT bucket, key, min(id) AS id FROM outbox
        WHERE bucket = ANY(CAST(current_setting('outbox.locked') AS int[])) AND topic = ANY($5)
        GROUP BY bucket, key)
"""
_NOT_BACKING_OFF = """
    AND o.topic <> ALL($5)
    AND NOT EXISTS (
        SELECT FROM waiting AS e WHERE e.bucket = o.bucket AND e.key = o.key AND e.id <= o.id)
"""
_OLDEST_ROWS = _oldest_rows()
_OLDEST_OTHER_ROWS = _oldest_rows(_WAITING_KEYS, _NOT_BACKING_OFF)


class RelayTransaction:
    """A transaction with the buckets that no other relay had locked."""

    def __init__(
        self, connection: AsyncConnection, driver: asyncpg.Connection, buckets: Sequence[int]
    ) -> None:
        self.connection = connection
        self._driver = driver
        self.buckets = buckets
        self._sent: Sequence[int] = ()

    async def oldest_rows(
        self, rows: int, size: int, backing_off: Collection[str] = ()
    ) -> OldestRows:
        """Return the oldest rows of each bucket that is locked.

        The buckets have the same count. At most `rows` rows and about `size` bytes are read of each.
        A key with a row for a topic that is `backing_off` is left out from that row on.
        """
        values = (rows, size, *bucket_range(self.buckets[0]))
        if backing_off:
            found = await self._driver.fetch(_OLDEST_OTHER_ROWS, *values, list(backing_off))
        else:
            found = await self._driver.fetch(_OLDEST_ROWS, *values)
        return OldestRows(
            {row[-1] for row in found},
            [_pending_row(row) for row in found if row[0] is not None],
            any(row[-2] for row in found[:1]),
        )

    def delete(self, ids: Sequence[int]) -> None:
        """Delete the rows that were sent, together with the commit."""
        self._sent = ids

    async def begin(self, statement_seconds: float, idle_seconds: float) -> None:
        script = _BEGIN.format(statement=statement_seconds * 1000, idle=idle_seconds * 1000)
        if self.buckets:
            script += _LOCK.format(buckets=_array(self.buckets))
        await self._driver.execute(script)

    async def commit(self) -> None:
        script = _DELETE.format(ids=_array(self._sent)) if self._sent else ""
        await self._driver.execute(f"{script} COMMIT;")


@asynccontextmanager
async def transaction(
    engine: AsyncEngine, statement_seconds: float, idle_seconds: float, buckets: Sequence[int] = ()
) -> AsyncIterator[RelayTransaction]:
    """Lock those `buckets` that no other relay has, for the length of the block."""
    async with engine.connect() as pooled:
        # BEGIN and COMMIT are sent here, not by SQLAlchemy.
        connection = await pooled.execution_options(isolation_level="AUTOCOMMIT")
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        opened = RelayTransaction(connection, driver, buckets)
        try:
            await opened.begin(statement_seconds, idle_seconds)
            yield opened
            await opened.commit()
        except BaseException as error:
            await connection.invalidate()  # whatever its state is: the server rolls back
            if categorize(error) is ErrorCategory.READ_ONLY:
                await engine.dispose()  # the other connections may lead to the same standby
            if isinstance(error, TimeoutError):  # DATABASE_COMMAND_TIMEOUT_SECONDS
                raise DatabaseUnavailable(NO_ANSWER) from error
            if isinstance(error, asyncpg.InterfaceError | OSError):
                raise DatabaseUnavailable(f"the connection was lost: {error}") from error
            raise


def _array(numbers: Sequence[int]) -> str:
    return "'{" + ",".join(map(str, numbers)) + "}'"


_HEADERS_FROM = 7
_HEADERS_TO = _HEADERS_FROM + len(HEADER_COLUMNS)


def _pending_row(row: Any) -> PendingRow:
    number, attempts, bucket, topic, key, value, others = row[:_HEADERS_FROM]
    message = as_message(topic, key, value, others, row[_HEADERS_FROM:_HEADERS_TO])
    return PendingRow(number, bucket, attempts, order_key(topic, key), message)
