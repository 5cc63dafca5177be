from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class InventoryLevel(Base):
    """How many pieces of a SKU are reserved for orders; counted by the consumer of order.created."""

    __tablename__ = "inventory"

    sku: Mapped[str] = mapped_column(String(64), primary_key=True)
    reserved: Mapped[int] = mapped_column(BigInteger)
