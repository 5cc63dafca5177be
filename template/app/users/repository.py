"""Repositories of users and their profiles."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import and_, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.platform.database.errors import violated_constraint
from app.platform.database.upserts import add_to_totals
from app.platform.errors import Conflict
from app.users.models import Profile, User


class EmailTaken(Conflict):
    title = "Another user has this e-mail address"


class UsernameTaken(Conflict):
    title = "Another user has this name"


class UserRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, email: str, username: str, phone: str | None) -> User:
        """Store a new user. Raises EmailTaken and UsernameTaken, also for concurrent transactions."""
        user = User(email=email, username=username, phone=phone)
        self._session.add(user)
        try:
            await self._session.flush()
        except IntegrityError as error:
            match violated_constraint(error):
                case "uq_users_email":
                    raise EmailTaken(f"the e-mail address {email} is taken") from error
                case "uq_users_username":
                    raise UsernameTaken(f"the username {username} is taken") from error
            raise
        return user

    async def exists(self, user_id: int) -> bool:
        return bool(await self._session.scalar(select(exists().where(User.id == user_id))))

    async def with_profile(self, user_id: int) -> tuple[User, Profile | None] | None:
        """Return the user, with the profile once the consumer of user.created has created it."""
        made = and_(Profile.user_id == User.id, Profile.created_at.is_not(None))
        query = select(User, Profile).outerjoin(Profile, made).where(User.id == user_id)
        row = (await self._session.execute(query)).one_or_none()
        return None if row is None else (row[0], row[1])


class ProfileRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, user_id: int, created_at: datetime) -> None:
        """Create the profile, or complete the one that posts have begun."""
        new = insert(Profile).values(user_id=user_id, created_at=created_at)
        await self._session.execute(
            new.on_conflict_do_update(
                index_elements=[Profile.user_id],
                set_={"created_at": func.coalesce(Profile.created_at, new.excluded.created_at)},
            )
        )

    async def add_posts(self, posts: Mapping[int, int]) -> None:
        """Add to each author's number of posts, whether or not the profile exists yet."""
        await add_to_totals(self._session, Profile.user_id, Profile.posts_published, posts)
