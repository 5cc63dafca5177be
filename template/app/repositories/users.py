from sqlalchemy import and_, exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict
from app.models import Profile, User
from app.repositories.constraints import violated


class EmailTaken(Conflict):
    title = "Another user has this e-mail address"


class UsernameTaken(Conflict):
    title = "Another user has this name"


class UserRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, email: str, username: str, phone: str | None) -> User:
        """Raises EmailTaken and UsernameTaken, also when another transaction was faster."""
        user = User(email=email, username=username, phone=phone)
        self._session.add(user)
        try:
            await self._session.flush()
        except IntegrityError as error:
            match violated(error):
                case "uq_users_email":
                    raise EmailTaken(f"the e-mail address {email} is taken") from error
                case "uq_users_username":
                    raise UsernameTaken(f"the username {username} is taken") from error
            raise
        return user

    async def exists(self, user_id: int) -> bool:
        return bool(await self._session.scalar(select(exists().where(User.id == user_id))))

    async def with_profile(self, user_id: int) -> tuple[User, Profile | None] | None:
        """The user, and the profile once the consumer of user.created has made it."""
        made = and_(Profile.user_id == User.id, Profile.created_at.is_not(None))
        query = select(User, Profile).outerjoin(Profile, made).where(User.id == user_id)
        row = (await self._session.execute(query)).one_or_none()
        return None if row is None else (row[0], row[1])
