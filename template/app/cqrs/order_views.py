"""The read model `order_views`: orders as they are listed and shown."""

from collections.abc import Sequence
from typing import cast

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.cqrs.models import OrderViewRow
from app.cqrs.projection import OrderState, Projection, newest


async def write(
    session: AsyncSession, tables: Sequence[Table], states: Sequence[OrderState]
) -> None:
    (views,) = tables
    new = insert(views)
    upsert = new.on_conflict_do_update(
        index_elements=[views.c.order_id],
        set_={column.name: new.excluded[column.name] for column in views.c},
        # Events of one order are on several topics and come in any order: the newest one wins.
        where=new.excluded.version > views.c.version,
    )
    await session.execute(upsert, [_row(state) for state in newest(states)])


def _row(state: OrderState) -> dict[str, object]:
    return {
        "order_id": state.id,
        "user_id": state.user_id,
        "status": state.status,
        "items": [
            {"sku": item.sku, "quantity": item.quantity, "unit_price": str(item.unit_price)}
            for item in state.items
        ],
        "item_count": sum(item.quantity for item in state.items),
        "total": state.total,
        "version": state.version,
        "placed_at": state.placed_at,
        "updated_at": state.updated_at,
    }


ORDER_VIEWS = Projection("order-views", [cast(Table, OrderViewRow.__table__)], write)
