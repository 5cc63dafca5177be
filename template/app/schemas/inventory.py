from app.schemas.fields import ResponseModel


class InventoryResponse(ResponseModel):
    """`reserved` counts what was ordered, as far as the consumer of `order.created` has come."""

    sku: str
    reserved: int
