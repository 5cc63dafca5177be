"""Which events there are, and who handles them."""

from app.events.handlers import count_posts, create_profile, reserve_inventory
from app.events.types import (
    OrderCancelled,
    OrderCreated,
    OrderPaid,
    PostPublished,
    UserCreated,
    user_created_2,
)
from app.kafka.event import EventType
from app.kafka.subscription import Subscription

EVENTS = [
    EventType(UserCreated, upcasters={1: user_created_2}),
    EventType(PostPublished),
    EventType(OrderCreated),
    EventType(OrderPaid),
    EventType(OrderCancelled),
]

SUBSCRIPTIONS = [
    Subscription("profiles", {UserCreated: create_profile}),
    Subscription("post-counts", {PostPublished: count_posts}, batch=True),
    Subscription("inventory", {OrderCreated: reserve_inventory}, batch=True),
]
