"""With the module cqrs: the read side is rebuilt from events, and compared with them."""

from app import wiring
from app.orders.events import OrderStateEvent
from app.orders.models import OrderRow
from app.orders.sales import DAILY_SALES
from app.orders.stream_states import ORDER_STREAMS
from app.orders.views import ORDER_VIEWS, OrderState
from tests.orders.stream.conftest import Cli, Shop

EVENTS = {entry.name: entry.model for entry in wiring.service.events}


async def published_states(shop: Shop) -> dict[int, OrderState]:
    """The newest state of each order, as the messages tell it."""
    states: dict[int, OrderState] = {}
    for value in await shop.published():
        event = EVENTS[value["event_type"]].model_validate(value)
        assert isinstance(event, OrderStateEvent)
        states[event.order_id] = OrderState.from_event(event)
    return states


async def some_orders(shop: Shop) -> list[int]:
    ids = [(await shop.place()).id for _ in range(5)]
    await shop.pay(ids[1])
    await shop.cancel(ids[3])
    return ids


async def rebuild(shop: Shop) -> None:
    for entry in wiring.service.projections:
        await entry.rebuild(shop.database, batch=2).run(lambda progress: None)


async def test_stored_events_add_up_to_the_published_ones(shop: Shop) -> None:
    ids = await some_orders(shop)
    source = ORDER_STREAMS
    async with shop.database.sessions() as session:
        first = await source.after(session, 0, limit=3)
        rest = await source.after(session, first[-1].id, limit=3)
        assert await source.after(session, rest[-1].id, limit=3) == []
        assert await source.count(session) == 5
    assert [state.id for state in first + rest] == ids
    assert {state.id: state for state in first + rest} == await published_states(shop)


async def test_projections_are_rebuilt_from_the_events(cli: Cli, shop: Shop) -> None:
    await some_orders(shop)
    sources = {entry.projection.name: entry.source for entry in wiring.service.projections}
    assert sources[ORDER_VIEWS.name] is ORDER_STREAMS
    assert sources[DAILY_SALES.name] is ORDER_STREAMS
    await rebuild(shop)
    answer = await cli("verify", "--patience", "0")
    assert (answer.exit_code, answer.stdout) == (0, "5 streams, 0 differ, 0 repaired\n")


async def test_no_table_of_the_write_side_is_kept_beside_the_events(shop: Shop) -> None:
    await some_orders(shop)
    assert await shop.count(OrderRow) == 0


async def test_a_read_side_that_stays_behind_is_reported(cli: Cli, shop: Shop) -> None:
    await some_orders(shop)
    await rebuild(shop)
    late = await shop.place()
    answer = await cli("verify", "--patience", "0.3")
    assert answer.exit_code == 1
    assert f"{late.id}: has events, and is not read" in answer.stdout
    refused = await cli("verify", "--repair")
    assert "rebuild its projection" in refused.stderr
