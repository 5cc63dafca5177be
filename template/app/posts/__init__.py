"""Posts of users."""

from app.platform.service import Component
from app.posts.events import EVENTS
from app.posts.handlers import SUBSCRIPTIONS
from app.posts.router import router

component = Component("posts", routers=[router], events=EVENTS, subscriptions=SUBSCRIPTIONS)
