from app.events.types import UserCreated
from app.models import User
from app.repositories.users import UserRepository
from app.unit_of_work import EventPublisher


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
