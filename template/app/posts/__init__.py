"""Posts of users."""

from app.platform.service import Component, Routers
from app.posts.events import EVENTS
from app.posts.handlers import SUBSCRIPTIONS


def routers() -> Routers:
    from app.posts.router import router

    return [router]


component = Component("posts", routers=routers, events=EVENTS, subscriptions=SUBSCRIPTIONS)
