"""Upserts of many rows in one statement."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Time,
    TypeDecorator,
    Uuid,
    bindparam,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL, Insert, insert
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine

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
        func.unnest(literal(keys, _array_of(key.type))),
        func.unnest(literal(numbers, _array_of(total.type))),
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

    Rows may come several times and in any order; all have the same columns. They are locked in the
    order of their keys.
    """
    key_of = itemgetter(*(column.name for column in table.primary_key))
    newest: dict[Any, Row] = {}
    for row in rows:
        id = key_of(row)
        if id not in newest or row[version] > newest[id][version]:
            newest[id] = row
    if not newest:
        return
    ordered = [newest[id] for id in sorted(newest)]
    names = tuple(ordered[0])
    if _fits_arrays(table, names):
        arrays = {_parameter(name): [row[name] for row in ordered] for name in names}
        await session.execute(_upsert_arrays(table, version, names), arrays)
    else:
        await session.execute(_upsert_rows(table, version), ordered)


@lru_cache(maxsize=64)
def _upsert_arrays(table: Table, version: str, names: Sequence[str]) -> Insert:
    """Return an upsert of rows whose values are given by column, an array each.

    The database plans and runs it once, and the driver encodes each array in one go.
    """
    arrays = (bindparam(_parameter(name), type_=_array_of(table.c[name].type)) for name in names)
    rows = select(*(func.unnest(array) for array in arrays))
    new = insert(table).from_select(names, rows, include_defaults=False)
    return _keep_newest(new, table, version)


@lru_cache(maxsize=64)
def _upsert_rows(table: Table, version: str) -> Insert:
    return _keep_newest(insert(table), table, version)


def _keep_newest(new: Insert, table: Table, version: str) -> Insert:
    return new.on_conflict_do_update(
        index_elements=[column.name for column in table.primary_key],
        set_={column.name: new.excluded[column.name] for column in table.c},
        where=new.excluded[version] > table.c[version],
    )


def _parameter(column: str) -> str:
    return f"{column}[]"  # unlike any column, whose name would make it a value of the insert


# In the database. Of other types, an array may be no list of values (an array of arrays), or its
# cast may change them (bits are cut).
_IN_ARRAYS = (
    *(Boolean, Date, DateTime, Float, Integer, INTERVAL, JSON, LargeBinary, Numeric, String),
    *(Time, Uuid),
)
_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()


@lru_cache(maxsize=64)
def _fits_arrays(table: Table, names: Sequence[str]) -> bool:
    """Return whether rows of these columns can be given as arrays."""
    return all(
        isinstance(_type_in_database(column.type), _IN_ARRAYS)
        if column.name in names
        else column.default is None  # one in Python is computed for each row
        for column in table.c
    )


def _array_of(kind: TypeEngine[Any]) -> ARRAY[Any]:
    """Return the type of an array of values of `kind`."""
    stored = _type_in_database(kind)
    if isinstance(stored, String) and not (isinstance(stored, Enum) and stored.native_enum):
        kind = _Text(kind)
    # With one dimension, a value that is a list (in JSON) stays a value.
    return ARRAY(kind, dimensions=1)


def _type_in_database(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    stored = kind.dialect_impl(_DIALECT)
    while isinstance(stored, TypeDecorator):
        stored = stored.impl_instance
    return stored


class _Text(TypeDecorator[Any]):
    """The values of a type of texts, of any length.

    A parameter is cast to its type, and a cast to varchar(n) cuts what the column would refuse.
    """

    impl = String
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any]) -> None:
        super().__init__()
        self.kind = kind

    def bind_processor(self, dialect: Dialect) -> Any:
        return self.kind.dialect_impl(dialect).bind_processor(dialect)
