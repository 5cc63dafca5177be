"""The tables of the business. Importing this package registers them all."""

from app.models.idempotency import IdempotencyKey
from app.models.inventory import InventoryLevel
from app.models.order import OrderItemRow, OrderRow, order_ids
from app.models.post import Post
from app.models.profile import Profile
from app.models.user import User

__all__ = [
    "IdempotencyKey",
    "InventoryLevel",
    "OrderItemRow",
    "OrderRow",
    "Post",
    "Profile",
    "User",
    "order_ids",
]
