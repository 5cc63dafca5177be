"""Commands on users."""

from app.platform.database.unit_of_work import EventPublisher
from app.users.events import UserCreated
from app.users.models import User
from app.users.repository import UserRepository


class UserService:
    def __init__(self, users: UserRepository, events: EventPublisher) -> None:
        self._users = users
        self._events = events

    async def create(self, email: str, username: str, phone: str | None) -> User:
        user = await self._users.add(email, username, phone)
        await self._events.publish(
            UserCreated(user_id=user.id, email=email, username=username, phone=phone)
        )
        return user
