"""The tables of users."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base


class User(Base):
    """Somebody who signed up. E-mail addresses are stored in lower case."""

    __tablename__ = "users"
    # Named here, because the repository tells by the name which of the two was taken.
    __table_args__ = (
        UniqueConstraint("email", name="uq_users_email"),
        UniqueConstraint("username", name="uq_users_username"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    username: Mapped[str] = mapped_column(String(50))
    phone: Mapped[str | None] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Profile(Base):
    """The consumers' knowledge of a user, made from events only.

    There is no foreign key to users: events may come from a database that is not this one.
    `created_at` is null while only posts were seen and the user's own event is still to come.
    """

    __tablename__ = "profiles"

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    posts_published: Mapped[int] = mapped_column(BigInteger, server_default="0")
