"""What only an event store can answer: how an order came to be, and what it was at any time."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from app.dependencies import PathId, SessionDep
from app.domain.orders import Order, OrderEvent
from app.errors import NotFound, Unprocessable, responses, with_headers
from app.event_sourcing.orders import ORDERS
from app.event_sourcing.store import EventStore, StoredEvent
from app.routers.orders import OrderReadsDep, OrderResponse, etag, get_order
from app.schemas import DIGITS, AfterVersion, Moment, QueryVersion, ResponseModel

router = APIRouter(prefix="/orders", tags=["orders"], responses=responses(422, 500, 503))


OrderStore = EventStore[OrderEvent, Order]


async def get_order_store(session: SessionDep) -> OrderStore:
    return EventStore(session, ORDERS)


OrderStoreDep = Annotated[OrderStore, Depends(get_order_store, scope="function")]


class OrderEventResponse(ResponseModel):
    """An event as the newest version of the service understands it.

    `command_id` is the `Idempotency-Key` of the request, `actor` what its `X-Actor` said.
    """

    version: Annotated[int, Field(description="The order's version after it")]
    type: Annotated[str, Field(examples=["order.paid"])]
    data: dict[str, Any]
    recorded_at: datetime
    event_id: UUID
    correlation_id: str | None
    causation_id: str | None
    command_id: str | None
    actor: str | None

    @classmethod
    def of(cls, stored: StoredEvent[OrderEvent]) -> "OrderEventResponse":
        told = ("correlation_id", "causation_id", "command_id", "actor")
        return cls(
            version=stored.version,
            type=stored.type,
            data=ORDERS.type_of(stored.event).adapter.dump_python(stored.event, mode="json"),
            recorded_at=stored.recorded_at,
            event_id=stored.event_id,
            **{name: stored.metadata.get(name) for name in told},
        )


class OrderHistory(ResponseModel):
    """Oldest first. `next_after` is null on the last page."""

    events: list[OrderEventResponse]
    next_after: int | None


@router.get("/{order_id}/events", summary="How an order came to be", responses=responses(404))
async def list_order_events(
    order_id: PathId,
    store: OrderStoreDep,
    after: Annotated[AfterVersion, Query(description="`next_after` of the page before")] = 0,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 100,
) -> OrderHistory:
    """The events of the order above the version `after`."""
    found = await store.events(order_id, after, limit + 1)
    if not found and not await store.events(order_id, limit=1):
        raise NotFound("order", order_id)
    page, more = found[:limit], found[limit:]
    return OrderHistory(
        events=[OrderEventResponse.of(stored) for stored in page],
        next_after=page[-1].version if more else None,
    )


@router.get(
    "/{order_id}",
    summary="Get an order, now or as it was",
    responses=responses(404) | with_headers(200, ETag="The order's version"),
)
async def get_order_in_time(
    order_id: PathId,
    orders: OrderReadsDep,
    store: OrderStoreDep,
    response: Response,
    min_version: Annotated[
        QueryVersion | None, Query(description="A version known from an ETag")
    ] = None,
    at_version: Annotated[
        QueryVersion | None, Query(description="The order as it was in this version")
    ] = None,
    at: Annotated[
        Moment | None, Query(description="The order as it was then, with a time zone")
    ] = None,
) -> OrderResponse:
    """With `min_version` the answer waits briefly until the order has come that far; then 503 with
    `Retry-After`. With `at_version` or `at` it is worked out from the events up to there; 404 where
    there was none yet."""
    if sum(given is not None for given in (min_version, at_version, at)) > 1:
        raise Unprocessable(
            "give one of min_version, at_version and at", pointer="/at_version", location="query"
        )
    if at is not None:
        at_version = await store.version_at(order_id, at)
    if at_version is None:
        return await get_order(order_id, orders, response, min_version)
    loaded = await store.load(order_id, at_version)
    if loaded is None:
        raise NotFound("order", f"{order_id} in version {at_version}" if at is None else order_id)
    response.headers["ETag"] = etag(loaded.version)
    return OrderResponse.model_validate(loaded.state)
