"""The read model `customer_names`: what users are called, joined to orders when they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import BigInteger, Index, String, Table, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.projections.projection import Projection, newest
from app.users.events import UserCreated
from app.users.models import User


class CustomerNameRow(Base):
    """A user's name.

    An order and its customer come on two streams, and either may be first. So neither writes into
    the other's row: names have a table of their own, and are joined when a view is read. Whatever
    the interleaving, both rows are there in the end, and until then the name is null.
    """

    __tablename__ = "customer_names"
    __table_args__ = (Index(None, "username"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    username: Mapped[str] = mapped_column(String(50))


@dataclass(frozen=True)
class Customer:
    """A user's name, which does not change."""

    id: int
    username: str
    version: int = 1

    @classmethod
    def of(cls, event: UserCreated) -> "Customer":
        return cls(event.user_id, event.username)


class UserTable:
    """Users and their names."""

    async def count(self, session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(User)) or 0

    async def after(self, session: AsyncSession, id: int, limit: int) -> list[Customer]:
        query = select(User.id, User.username).where(User.id > id).order_by(User.id).limit(limit)
        return [Customer(row.id, row.username) for row in await session.execute(query)]


async def write(session: AsyncSession, tables: Sequence[Table], states: Sequence[Customer]) -> None:
    (names,) = tables
    rows = [{"user_id": state.id, "username": state.username} for state in newest(states)]
    # A user is created once, so a second row could only say the same.
    await session.execute(insert(names).on_conflict_do_nothing(), rows)


CUSTOMER_NAMES = Projection("customer-names", [cast(Table, CustomerNameRow.__table__)], write)
