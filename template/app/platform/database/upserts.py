"""Upserts of many rows in one statement."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Enum, String, Table, TypeDecorator, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

Row = dict[str, Any]


async def add_to_totals(
    session: AsyncSession,
    key: InstrumentedAttribute[Any],
    total: InstrumentedAttribute[int],
    amounts: Mapping[Any, int],
) -> None:
    """Add to the `total` of each `key`; a key without a row starts at 0.

    Rows are locked in the order of their keys, so that concurrent batches wait for each other and
    never deadlock.
    """
    if not amounts:
        return
    keys, numbers = zip(*sorted(amounts.items()), strict=True)
    # Two arrays, because a statement has at most 32,767 parameters.
    rows = select(
        func.unnest(literal(keys, _array_of(key))),
        func.unnest(literal(numbers, _array_of(total))),
    )
    new = insert(key.class_).from_select([key.key, total.key], rows)
    await session.execute(
        new.on_conflict_do_update(
            index_elements=[key], set_={total.key: total + new.excluded[total.key]}
        )
    )


async def upsert_newest(
    session: AsyncSession, table: Table, rows: Sequence[Row], version: str
) -> None:
    """Upsert `rows` by primary key; of each key the highest `version` stays.

    Rows may come several times and in any order. They are locked in the order of their keys.
    """
    key = [column.name for column in table.primary_key]
    newest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        id = tuple(row[name] for name in key)
        if id not in newest or row[version] > newest[id][version]:
            newest[id] = row
    if not newest:
        return
    await session.execute(_upsert(table, version), [newest[id] for id in sorted(newest)])


@lru_cache(maxsize=64)
def _upsert(table: Table, version: str) -> Insert:
    new = insert(table)
    return new.on_conflict_do_update(
        index_elements=[column.name for column in table.primary_key],
        set_={column.name: new.excluded[column.name] for column in table.c},
        where=new.excluded[version] > table.c[version],
    )


def _array_of(column: InstrumentedAttribute[Any]) -> ARRAY[Any]:
    """Return the type of an array of the column's values."""
    # A parameter is cast to its type, and a cast to varchar(n) cuts what the column would refuse.
    kind = column.type
    if isinstance(kind, String) and not isinstance(kind, Enum):
        kind = String()
    elif isinstance(kind, TypeDecorator) and isinstance(kind.impl_instance, String):
        kind = kind.copy()
        kind.impl = kind.impl_instance = String()
    return ARRAY(kind)
