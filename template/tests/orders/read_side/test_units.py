"""The parts of the read side that need no server."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import wiring
from app.orders.domain import OrderStatus
from app.orders.sales import Change, Sale, changes, newer
from app.orders.views import OrderState
from app.platform.config import ConfigurationError
from app.platform.http.app import create_app
from app.platform.projections.projection import newest
from app.platform.service import Role

DAY = date(2025, 3, 1)

days = st.none() | st.dates(DAY, DAY + timedelta(days=2))
sales = st.builds(Sale, st.integers(1, 4), st.integers(1, 6), days, st.decimals(0, 100, places=2))


def state(status: OrderStatus, at: datetime) -> OrderState:
    return OrderState(1, 2, 7, status, (), Decimal("3.50"), at, at)


def test_of_every_status_it_is_decided_whether_it_is_a_sale() -> None:
    at = datetime(2025, 3, 1, tzinfo=UTC)
    sold_on = {status: Sale.of(state(status, at)).day for status in OrderStatus}
    assert sold_on == {
        OrderStatus.PLACED: None,
        OrderStatus.PAID: DAY,
        OrderStatus.CANCELLED: None,
    }


def test_the_day_is_that_of_utc() -> None:
    late = datetime(2025, 3, 1, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert Sale.of(state(OrderStatus.PAID, late)) == Sale(1, 2, date(2025, 3, 2), Decimal("3.50"))


def test_a_sale_moves_from_one_day_to_the_other() -> None:
    before = {1: Sale(1, 2, DAY, Decimal(5))}
    moved = changes(before, [Sale(1, 3, DAY + timedelta(days=1), Decimal(7))])
    assert moved == {
        DAY: Change(-1, Decimal(-5)),
        DAY + timedelta(days=1): Change(1, Decimal(7)),
    }


@given(st.lists(st.lists(sales, max_size=6)))
def test_the_totals_are_the_sum_of_the_newest_sales(batches: list[list[Sale]]) -> None:
    kept: dict[int, Sale] = {}
    orders, revenue = Counter[date](), Counter[date]()
    for batch in batches:
        once = {sale.order_id: sale for sale in batch}
        after = newer(kept, list(once.values()))
        for day, change in changes(kept, after).items():
            orders[day] += change.orders
            revenue[day] += change.revenue  # type: ignore[assignment]  # a counter of Decimals
        kept |= {sale.order_id: sale for sale in after}
    for day in orders:
        of_day = [sale for sale in kept.values() if sale.day == day]
        assert orders[day] == len(of_day)
        assert revenue[day] == sum(sale.amount for sale in of_day)


@given(st.lists(sales, unique_by=lambda sale: sale.order_id))
def test_a_state_that_is_known_changes_nothing(known: list[Sale]) -> None:
    kept = {sale.order_id: sale for sale in known}
    assert newer(kept, known) == []
    assert changes(kept, known) == {}


@dataclass(frozen=True)
class Seen:
    id: int
    version: int


seen = st.builds(Seen, st.integers(1, 5), st.integers(1, 5))


@given(st.lists(seen))
def test_the_newest_state_of_each_thing_is_left_by_id(states: list[Seen]) -> None:
    left = newest(states)
    assert [state.id for state in left] == sorted({state.id for state in states})
    for state in left:
        assert state.version == max(other.version for other in states if other.id == state.id)


@given(st.lists(seen), st.randoms(use_true_random=False))
def test_the_order_in_which_states_come_is_of_no_matter(states: list[Seen], random: object) -> None:
    assert newest(states) == newest(sorted(states, key=lambda state: -state.version))


def test_a_wrong_setting_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECTIONS_MAX_LAG_SECONDS", "0")
    with pytest.raises(ConfigurationError, match="PROJECTIONS_MAX_LAG_SECONDS"):
        create_app(wiring.service, {Role.API})
