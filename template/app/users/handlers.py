"""Consumers of users. Their effects commit together with the inbox row."""

from app.platform.database.unit_of_work import UnitOfWork
from app.platform.kafka.subscription import Subscription
from app.users.events import UserCreated
from app.users.repository import ProfileRepository


async def create_profile(event: UserCreated, uow: UnitOfWork) -> None:
    await ProfileRepository(uow.session).create(event.user_id, event.timestamp)


SUBSCRIPTIONS = [
    Subscription("profiles", {UserCreated: create_profile}),
]
