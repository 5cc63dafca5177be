"""The rows of orders that SqlOrderQueries reads, written in the transaction of the append.

They can be computed again at any time: `app event-store verify` compares them with the streams, and
rewrites them with `--repair`.
"""

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.orders.domain import Order
from app.orders.models import OrderItemRow, OrderRow
from app.platform.database.engine import table_of
from app.platform.database.upserts import upsert_newest
from app.platform.event_store.store import StreamState

_ORDERS = table_of(OrderRow)
_ITEMS = table_of(OrderItemRow)


async def project(session: AsyncSession, states: Sequence[StreamState[Order]]) -> None:
    """Write the rows of orders; a newer row stays."""
    await upsert_newest(session, _ORDERS, [_row(loaded) for loaded in states], "version")
    # No event changes items, so there is nothing to update.
    if items := [row for loaded in states for row in _items(loaded.state)]:
        await session.execute(insert(_ITEMS).on_conflict_do_nothing(), items)


async def rewrite(session: AsyncSession, loaded: StreamState[Order]) -> None:
    """Replace the rows of an order."""
    order_id = loaded.state.id
    await session.execute(delete(_ITEMS).where(_ITEMS.c.order_id == order_id))
    await session.execute(delete(_ORDERS).where(_ORDERS.c.id == order_id))
    await project(session, [loaded])


def _row(loaded: StreamState[Order]) -> dict[str, object]:
    order = loaded.state
    return {
        "id": order.id,
        "user_id": order.user_id,
        "status": order.status.value,
        "total": order.total,
        "version": order.version,
        "created_at": loaded.began_at,
        "updated_at": loaded.changed_at,
    }


def _items(order: Order) -> list[dict[str, object]]:
    return [
        {
            "order_id": order.id,
            "position": position,
            "sku": item.sku,
            "quantity": item.quantity,
            "unit_price": item.unit_price,
        }
        for position, item in enumerate(order.items)
    ]
