from datetime import datetime

from sqlalchemy import BigInteger, DateTime
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class Profile(Base):
    """What the consumers know of a user; made from events only.

    There is no foreign key to users: events may come from a database that is not this one.
    `created_at` is null while only posts were seen and the user's own event is still to come.
    """

    __tablename__ = "profiles"

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    posts_published: Mapped[int] = mapped_column(BigInteger, server_default="0")
