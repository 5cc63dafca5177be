"""Users, and the profiles that consumers create for them."""

from app.platform.service import Component, Routers
from app.users.events import EVENTS
from app.users.handlers import SUBSCRIPTIONS


def routers() -> Routers:
    from app.users.router import router

    return [router]


component = Component(
    "users",
    routers=routers,
    events=EVENTS,
    subscriptions=SUBSCRIPTIONS,
    first_request=("/users", '{"email": "ada@example.com", "username": "ada"}'),
)
