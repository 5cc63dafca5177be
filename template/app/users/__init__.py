"""Users, and the profiles that consumers create for them."""

from app.platform.service import Component
from app.users.events import EVENTS
from app.users.handlers import SUBSCRIPTIONS
from app.users.router import router

component = Component(
    "users",
    routers=[router],
    events=EVENTS,
    subscriptions=SUBSCRIPTIONS,
    first_request=("/users", '{"email": "ada@example.com", "username": "ada"}'),
)
