"""Upserts of many rows in one statement, on a real server."""

from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    CHAR,
    JSON,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT, INET, JSONB
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from app.platform.database.engine import Database
from app.platform.database.upserts import Row, add_to_totals, upsert_newest
from tests.fixtures import database_settings


class Base(DeclarativeBase):
    metadata = MetaData()


class Code(TypeDecorator[str]):
    """A text in small letters, stored in large ones."""

    impl = String(5)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.upper()


class Tags(TypeDecorator[list[str]]):
    """A list that is stored as JSON."""

    impl = JSON().with_variant(JSONB, "postgresql")
    cache_ok = True


class Short(TypeDecorator[str]):
    """A text whose type depends on the database."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(5))


class Total(Base):
    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class CodeTotal(Base):
    __tablename__ = "code_totals"

    code: Mapped[str] = mapped_column(Code, primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class ColourTotal(Base):
    __tablename__ = "colour_totals"

    colour: Mapped[Colour] = mapped_column(Enum(Colour), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class View(Base):
    __tablename__ = "views"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[str] = mapped_column(String(20))


@pytest.fixture
async def session(session_database_url: str) -> AsyncIterator[AsyncSession]:
    database = Database(database_settings(session_database_url))
    async with database.engine.connect() as connection:
        await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(connection) as session:
            yield session
        await connection.rollback()
    await database.close()


async def totals(session: AsyncSession) -> dict[str, int]:
    rows = await session.execute(select(Total.name, Total.amount))
    return {row.name: row.amount for row in rows}


async def test_amounts_are_added_to_totals(session: AsyncSession) -> None:
    await add_to_totals(session, Total.name, Total.amount, {"tea": 2, "cup": 1})
    await add_to_totals(session, Total.name, Total.amount, {"tea": 3, "pot": 4})
    await add_to_totals(session, Total.name, Total.amount, {})
    assert await totals(session) == {"tea": 5, "cup": 1, "pot": 4}


async def test_a_batch_may_exceed_the_parameters_of_a_statement(session: AsyncSession) -> None:
    await add_to_totals(session, Total.name, Total.amount, {str(n): n for n in range(40_000)})
    assert len(await totals(session)) == 40_000


async def test_a_key_that_is_too_long_is_refused(session: AsyncSession) -> None:
    with pytest.raises(DBAPIError, match="SQLSTATE 22001"):
        await add_to_totals(session, Total.name, Total.amount, {"x" * 21: 1})


async def test_a_key_of_a_type_of_ones_own_is_converted_or_refused(session: AsyncSession) -> None:
    await add_to_totals(session, CodeTotal.code, CodeTotal.amount, {"tea": 1})
    assert await session.scalar(text("SELECT code FROM code_totals")) == "TEA"
    with pytest.raises(DBAPIError, match="SQLSTATE 22001"):
        await add_to_totals(session, CodeTotal.code, CodeTotal.amount, {"kettle": 1})


async def test_members_of_an_enum_are_keys(session: AsyncSession) -> None:
    await add_to_totals(session, ColourTotal.colour, ColourTotal.amount, {Colour.BLUE: 2})
    await add_to_totals(session, ColourTotal.colour, ColourTotal.amount, {Colour.BLUE: 3})
    found = await session.execute(select(ColourTotal.colour, ColourTotal.amount))
    assert [tuple(each) for each in found] == [(Colour.BLUE, 5)]


def row(id: int, version: int) -> Row:
    return {"id": id, "version": version, "text": f"{id} in {version}"}


async def test_the_newest_version_of_each_key_stays(session: AsyncSession) -> None:
    for rows in ([row(1, 2), row(1, 3), row(1, 1), row(2, 5)], [row(2, 4), row(3, 1)], []):
        await upsert_newest(session, View.metadata.tables["views"], rows, "version")
    found = await session.execute(select(View.id, View.text).order_by(View.id))
    assert [tuple(each) for each in found] == [(1, "1 in 3"), (2, "2 in 5"), (3, "3 in 1")]


# Upserts by arrays, beside inserts of the same rows one at a time

NOON = datetime(2026, 2, 3, 12, 30, 15, 123456, UTC)

# Of each type: values, and whether a column of them is one array.
TYPES: dict[str, tuple[TypeEngine[Any], list[Any], bool]] = {
    "small": (SmallInteger(), [-(2**15), 2**15 - 1], True),
    "integer": (Integer(), [-(2**31), 0], True),
    "big": (BigInteger(), [2**63 - 1, True], True),
    "numeric": (Numeric(8, 2), [Decimal("1.005"), Decimal("NaN"), 7, 2.5], True),
    "any_numeric": (Numeric(), [Decimal("1e-30"), Decimal(10) ** 40], True),
    "as_float": (Numeric(8, 2, asdecimal=False), [2.5, Decimal("0.1")], True),
    "real": (REAL(), [0.1, float("inf")], True),
    "float": (Float(), [0.1, 1], True),
    "double": (Double(), [0.1, -0.0], True),
    "boolean": (Boolean(), [True, False], True),
    "text": (Text(), ["", "{}", 'NULL "\\ ,ä€\U0001f600', Colour.RED], True),
    "string": (String(5), ["12345", "ä€ö"], True),
    "string_with_spaces": (String(2), ["ab  ", "a   "], True),
    "char": (CHAR(3), ["a", "abc"], True),
    "code": (Code(), ["tea", "Cup"], True),
    "short": (Short(), ["tea", "12345"], True),
    "colour": (Enum(Colour, name="colour"), [Colour.RED, Colour.BLUE, "RED"], True),
    "text_colour": (Enum(Colour, native_enum=False), [Colour.RED, "BLUE"], True),
    "uuid": (Uuid(), [UUID(int=0), UUID(int=2**128 - 1)], True),
    "uuid_as_text": (Uuid(as_uuid=False), [str(UUID(int=7))], True),
    "bytes": (LargeBinary(), [b"", b"\x00\xff", bytearray(b"a")], True),
    "pickle": (PickleType(), [{"a": (1, 2)}, [1]], True),
    "json": (JSON(), [[1, [2]], {"a": None}, "text", 1, [], JSON.NULL], True),
    "jsonb": (JSONB(), [[[1], [2, 3]], {"ä": 1.5}, "[]", False], True),
    "json_or_null": (JSONB(none_as_null=True), [[], {}], True),
    "tags": (Tags(), [["a", "b"], []], True),
    "date": (Date(), [date(1, 1, 1), date(9999, 12, 31)], True),
    "time": (Time(), [time(0), time(23, 59, 59, 999999)], True),
    "local": (DateTime(), [datetime(2026, 2, 3, 4, 5, 6, 7)], True),
    "moment": (DateTime(timezone=True), [NOON, NOON.astimezone()], True),
    "interval": (Interval(), [timedelta(days=-3, microseconds=1)], True),
    "array": (ARRAY(Integer), [[1, 2], []], False),
    "texts": (ARRAY(String(5)), [["{", "ä"]], False),
    "bits": (BIT(3), ["101"], False),
    "address": (INET(), ["127.0.0.1"], False),
}


def every_type(name: str) -> Table:
    """Return a table with a column of each type."""
    columns = [Column(column, kind.copy()) for column, (kind, _, _) in TYPES.items()]
    version = Column("version", Integer, nullable=False)
    return Table(name, MetaData(), Column("id", Integer, primary_key=True), version, *columns)


def rows_of(columns: list[str]) -> list[Row]:
    """Return rows that have all values of `columns`, and nulls."""
    rows: list[Row] = []
    for number in range(max(len(TYPES[column][1]) for column in columns)):
        rows.append({"id": number, "version": 1})
        for column in columns:
            values = TYPES[column][1]
            rows[-1][column] = values[number % len(values)]
    return [*rows, {"id": len(rows), "version": 1, **dict.fromkeys(columns)}]


async def create(session: AsyncSession, *tables: Table) -> None:
    connection = await session.connection()
    for table in tables:
        await connection.run_sync(table.metadata.create_all)


async def content(session: AsyncSession, table: Table) -> list[tuple[object, ...]]:
    """Return the rows as the database writes them, because two NaN are not equal."""
    row = f'SELECT "{table.name}"::text FROM "{table.name}" ORDER BY id'
    return [tuple(each) for each in await session.execute(text(row))]


def record_statements(session: AsyncSession) -> list[bool]:
    """Return a list that grows with each statement: whether it is sent for many rows, one at a time."""
    statements: list[bool] = []
    connection = session.get_bind()
    event.listen(connection, "before_cursor_execute", lambda *given: statements.append(given[-1]))
    return statements


@pytest.mark.parametrize("column", TYPES)
async def test_a_value_is_stored_as_by_an_insert(session: AsyncSession, column: str) -> None:
    one_by_one, upserted = every_type("one_by_one"), every_type("upserted")
    await create(session, one_by_one, upserted)
    rows = rows_of([column])
    for row in rows:
        await session.execute(insert(one_by_one), row)
    statements = record_statements(session)
    await upsert_newest(session, upserted, rows, "version")
    assert statements == [not TYPES[column][2]]
    assert await content(session, upserted) == await content(session, one_by_one)


async def test_rows_of_many_columns_keep_their_values_together(session: AsyncSession) -> None:
    one_by_one, upserted = every_type("one_by_one"), every_type("upserted")
    await create(session, one_by_one, upserted)
    rows = rows_of([column for column, (_, _, is_array) in TYPES.items() if is_array])
    for row in rows:
        await session.execute(insert(one_by_one), row)
    older = [{**row, "version": 0} for row in rows]
    for batch in ([rows[0]], older, rows[::-1] + older, older):
        await upsert_newest(session, upserted, batch, "version")
    assert await content(session, upserted) == await content(session, one_by_one)


REFUSED = {
    "small": 2**15,
    "integer": "1",
    "numeric": Decimal(10**6),
    "boolean": "yes",
    "text": "\x00",
    "string": "123456",
    "char": "abcd",
    "code": "kettle",
    "short": "kettle",
    "colour": "GREEN",
    "text_colour": "GREEN",
    "uuid": "1",
    "bytes": "text",
    "json": {1, 2},
    "jsonb": "\x00",
    "date": "2026-02-03",
    "moment": "2026-02-03",
    "interval": 3,
    "array": ["a"],
}


async def failure(session: AsyncSession, work: Awaitable[object]) -> tuple[object, ...]:
    """Return the kind of the error with which `work` fails."""
    with pytest.raises(StatementError) as caught:
        async with session.begin_nested():
            await work
    error = caught.value
    return type(error), type(error.orig), getattr(error.orig, "sqlstate", None)


@pytest.mark.parametrize("column", REFUSED)
async def test_a_value_is_refused_as_by_an_insert(session: AsyncSession, column: str) -> None:
    table = every_type("refusing")
    await create(session, table)
    first, refused, last = (Row(id=id, version=1) | {column: None} for id in range(3))
    refused[column] = REFUSED[column]
    inserted = await failure(session, session.execute(insert(table), refused))
    upsert = upsert_newest(session, table, [first, refused, last], "version")
    assert await failure(session, upsert) == inserted
    assert await content(session, table) == []


async def test_a_null_is_refused_where_there_may_be_none(session: AsyncSession) -> None:
    views = View.metadata.tables["views"]
    with pytest.raises(DBAPIError, match="null value in column"):
        await upsert_newest(session, views, [row(1, 1), {**row(2, 1), "text": None}], "version")


async def test_columns_that_are_left_out_have_their_defaults(session: AsyncSession) -> None:
    numbers = count(1)
    in_database = Column("place", String(5), server_default="here")
    tables = [
        Table(
            name,
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("version", Integer),
            *columns,
        )
        for name, columns in (
            ("in_database", [in_database]),
            ("in_python", [Column("number", Integer, default=lambda: next(numbers))]),
        )
    ]
    await create(session, *tables)
    for table in tables:
        await upsert_newest(session, table, [{"id": id, "version": 1} for id in (1, 2)], "version")
    assert await content(session, tables[0]) == [("(1,1,here)",), ("(2,1,here)",)]
    assert await content(session, tables[1]) == [("(1,1,1)",), ("(2,1,2)",)]


async def test_rows_are_upserted_by_a_key_of_several_columns(session: AsyncSession) -> None:
    table = Table(
        "days",
        MetaData(),
        Column("user", String(5), primary_key=True),
        Column("day", Date, primary_key=True),
        Column("version", Integer),
    )
    await create(session, table)
    day = date(2026, 2, 3)
    rows = [{"user": user, "day": day, "version": n} for n in (2, 3, 1) for user in ("b", "a")]
    await upsert_newest(session, table, rows, "version")
    found = await session.execute(select(table).order_by(table.c.user))
    assert [tuple(row) for row in found] == [("a", day, 3), ("b", day, 3)]


async def test_more_rows_than_a_statement_has_parameters_are_one(session: AsyncSession) -> None:
    statements = record_statements(session)
    rows = [row(id, 1) for id in range(40_000)]
    await upsert_newest(session, View.metadata.tables["views"], rows, "version")
    assert statements == [False]
    assert await session.scalar(text("SELECT count(*) FROM views")) == 40_000
