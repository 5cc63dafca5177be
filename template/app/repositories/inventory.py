from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import InventoryLevel


class InventoryRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def reserved(self, sku: str) -> int:
        query = select(InventoryLevel.reserved).where(InventoryLevel.sku == sku)
        return await self._session.scalar(query) or 0

    async def reserve(self, quantities: Mapping[str, int]) -> None:
        """Add to what is reserved of each SKU. Rows are locked in the order of their SKUs."""
        if not quantities:
            return
        new = insert(InventoryLevel).values(
            [{"sku": sku, "reserved": quantity} for sku, quantity in sorted(quantities.items())]
        )
        total = InventoryLevel.reserved + new.excluded.reserved
        await self._session.execute(
            new.on_conflict_do_update(index_elements=[InventoryLevel.sku], set_={"reserved": total})
        )
