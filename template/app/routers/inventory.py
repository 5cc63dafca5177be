from typing import Annotated

from fastapi import APIRouter, Path

from app.dependencies import InventoryDep
from app.errors import responses
from app.schemas import InventoryResponse, Sku

router = APIRouter(prefix="/inventory", tags=["inventory"], responses=responses(422, 500, 503))


@router.get("/{sku}", summary="Get how many pieces of a SKU are reserved")
async def get_inventory(sku: Annotated[Sku, Path()], inventory: InventoryDep) -> InventoryResponse:
    """Counted by the consumer of `order.created`. There is no catalogue of SKUs: one that nobody
    ordered, or whose orders were not consumed yet, has 0 reserved."""
    return InventoryResponse(sku=sku, reserved=await inventory.reserved(sku))
