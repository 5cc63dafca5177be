"""The tables of users."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from app.platform.database.engine import Base


class User(Base):
    """A user. E-mail addresses are stored in lower case."""

    __tablename__ = "users"
    # Named, because the repository recognises the violated constraint by its name.
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
    """The profile of a user, created by consumers.

    There is no foreign key to users: events may come from another database. `created_at` is null
    while only posts have been consumed, and not yet the user's own event.
    """

    __tablename__ = "profiles"

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    posts_published: Mapped[int] = mapped_column(BigInteger, server_default="0")
