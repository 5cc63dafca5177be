"""The read model `customer_names`: the names of users, for the views of orders."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Index, String, Table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base
from app.platform.projections.projection import Projection, newest
from app.platform.projections.rebuild import TableSource
from app.users.events import UserCreated
from app.users.models import User


class CustomerNameRow(Base):
    """A user's name.

    Either event may come first, that of an order or that of its customer. So names have a table of
    their own, which queries join; until the customer's event has come, the name is null.
    """

    __tablename__ = "customer_names"
    __table_args__ = (Index(None, "username"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    username: Mapped[str] = mapped_column(String(50))


@dataclass(frozen=True)
class Customer:
    """A user with a name, which never changes."""

    id: int
    username: str
    version: int = 1

    @classmethod
    def from_event(cls, event: UserCreated) -> "Customer":
        return cls(event.user_id, event.username)


USER_NAMES = TableSource(User.id, lambda user: Customer(user.id, user.username))


async def write(session: AsyncSession, tables: Sequence[Table], states: Sequence[Customer]) -> None:
    (names,) = tables
    rows = [{"user_id": state.id, "username": state.username} for state in newest(states)]
    # A name never changes, so there is nothing to update.
    await session.execute(insert(names).on_conflict_do_nothing(), rows)


CUSTOMER_NAMES = Projection("customer-names", [CustomerNameRow], write)
