"""Upserts of many rows in one statement, on a real server."""

from collections.abc import AsyncIterator
from enum import StrEnum

import pytest
from sqlalchemy import BigInteger, Dialect, Enum, MetaData, String, TypeDecorator, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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
