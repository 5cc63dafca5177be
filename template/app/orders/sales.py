"""The read model `daily_sales`: the revenue and the number of paid orders, by day.

A total belongs to many orders, so it cannot be upserted by version. The table `sales` has the
contribution of each order; a newer state replaces it, and the totals change by the difference. A
repeated or older state changes nothing, also in a rebuild that runs beside live events.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date
from decimal import Decimal
from typing import assert_never

from sqlalchemy import BigInteger, Date, Integer, Numeric, Table, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.orders.domain import OrderStatus
from app.orders.views import OrderState
from app.platform.database.engine import Base
from app.platform.database.upserts import upsert_newest
from app.platform.projections.projection import Projection, newest


class SaleRow(Base):
    """An order's contribution to the daily totals, in its newest version.

    `day` is null for an order without a contribution. The totals are always the sums of these rows.
    """

    __tablename__ = "sales"

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(Integer)
    day: Mapped[date | None] = mapped_column(Date)
    amount: Mapped[Decimal] = mapped_column(Numeric(22, 2))


class DailySalesRow(Base):
    """The sales of a day (UTC)."""

    __tablename__ = "daily_sales"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    revenue: Mapped[Decimal] = mapped_column(Numeric(38, 2))


@dataclass(frozen=True)
class Sale:
    """The contribution of an order in `version`: `amount` on `day`, or nothing if that is None."""

    order_id: int
    version: int
    day: date | None
    amount: Decimal

    @classmethod
    def of(cls, state: OrderState) -> "Sale":
        match state.status:
            case OrderStatus.PAID:
                # No event follows the payment, so the last change is the payment.
                day = state.updated_at.astimezone(UTC).date()
                return cls(state.id, state.version, day, state.total)
            case OrderStatus.PLACED | OrderStatus.CANCELLED:
                return cls(state.id, state.version, None, Decimal(0))
            case _:
                assert_never(state.status)


@dataclass(frozen=True)
class Change:
    """A change of the totals of a day."""

    orders: int = 0
    revenue: Decimal = Decimal(0)


def newer(before: Mapping[int, Sale], sales: Sequence[Sale]) -> list[Sale]:
    """Return the sales that are newer than those `before`."""
    return [
        sale
        for sale in sales
        if sale.order_id not in before or sale.version > before[sale.order_id].version
    ]


def changes(before: Mapping[int, Sale], after: Sequence[Sale]) -> dict[date, Change]:
    """Compute how the totals change when the sales `before` are replaced by those `after`."""
    found: dict[date, Change] = defaultdict(Change)
    for sale in after:
        for old, sign in ((before.get(sale.order_id), -1), (sale, 1)):
            if old is not None and old.day is not None:
                day = found[old.day]
                found[old.day] = Change(day.orders + sign, day.revenue + sign * old.amount)
    return {day: change for day, change in sorted(found.items()) if change != Change()}


async def write(
    session: AsyncSession, tables: Sequence[Table], states: Sequence[OrderState]
) -> None:
    sales, totals = tables
    incoming = [Sale.of(state) for state in newest(states)]
    before = await _sales(session, sales, [sale.order_id for sale in incoming])
    after = newer(before, incoming)
    await upsert_newest(session, sales, [vars(sale) for sale in after], "version")
    await _add_to_totals(session, totals, changes(before, after))


async def _sales(
    session: AsyncSession, sales: Table, order_ids: Collection[int]
) -> dict[int, Sale]:
    # No other transaction can change them: this one holds the lock of the projection.
    columns = (sales.c.order_id, sales.c.version, sales.c.day, sales.c.amount)
    known = sales.c.order_id == func.any(list(order_ids))
    rows = await session.execute(select(*columns).where(known))
    return {row.order_id: Sale(*row) for row in rows}


async def _add_to_totals(
    session: AsyncSession, totals: Table, by_day: Mapping[date, Change]
) -> None:
    if not by_day:
        return
    new = insert(totals)
    upsert = new.on_conflict_do_update(
        index_elements=[totals.c.day],
        set_={
            "orders": totals.c.orders + new.excluded.orders,
            "revenue": totals.c.revenue + new.excluded.revenue,
        },
    )
    await session.execute(upsert, [{"day": day, **vars(by_day[day])} for day in by_day])


DAILY_SALES = Projection(
    "daily-sales",
    [SaleRow, DailySalesRow],
    write,
)
