"""Events that were set aside: looking at them, sending them after all, giving them up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from app.outbox.buckets import OrderKey, bucket_of, division_of, order_key
from app.outbox.model import OutboxBucket, OutboxRow, ParkedRow

# Everything of a row but what tells of its parking; it starts again without attempts.
_COLUMNS = [c.name for c in OutboxRow.__table__.columns if c.name != "attempts"]


@dataclass(frozen=True)
class Filter:
    """Which parked rows are meant: those that fit everything that is given."""

    ids: Sequence[int] = ()
    topic: str | None = None
    key: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.ids:
            found.append(ParkedRow.id.in_(self.ids))
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
        .where(OutboxBucket.bucket.in_(buckets))
        .order_by(OutboxBucket.bucket)
        .with_for_update()
    )
    return {order_key(topic, key) for topic, key in messages}


async def _free(connection: AsyncConnection, keys: Iterable[OrderKey]) -> list[int]:
    """The rows of `keys` that are held although nothing before them is parked any more."""
    query = select(ParkedRow.id, ParkedRow.topic, ParkedRow.key, ParkedRow.held)
    rows = (await connection.execute(query.where(ParkedRow.key.in_({k for _, k in keys})))).all()
    blocked = {order_key(row.topic, row.key) for row in rows if not row.held}
    free = set(keys) - blocked
    return [row.id for row in rows if row.held and order_key(row.topic, row.key) in free]


async def _put_back(connection: AsyncConnection, ids: Sequence[int]) -> int:
    columns = [getattr(ParkedRow, name) for name in _COLUMNS]
    moved = insert(OutboxRow).from_select(_COLUMNS, select(*columns).where(_in(ids)))
    await connection.execute(moved)
    return (await connection.execute(delete(ParkedRow).where(_in(ids)))).rowcount


def _in(ids: Sequence[int]) -> ColumnElement[bool]:
    return ParkedRow.id.in_(ids)
