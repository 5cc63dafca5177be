"""Routes that only an event store can serve: the history of an order, and its past states."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from app.orders.domain import Order, OrderEvent
from app.orders.router import OrderResponse, etag
from app.orders.stream import ORDERS
from app.platform.errors import NotFound, Unprocessable
from app.platform.event_store.store import EventStore, StoredEvent
from app.platform.http.dependencies import PathId, SessionDep
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import DIGITS, AfterVersion, QueryVersion, ResponseModel, UtcDatetime

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
    "/{order_id}/as-of",
    summary="Get an order as it was",
    responses=responses(404) | with_headers(200, ETag="The order's version"),
)
async def get_order_as_of(
    order_id: PathId,
    store: OrderStoreDep,
    response: Response,
    version: Annotated[QueryVersion | None, Query(description="The order in this version")] = None,
    time: Annotated[
        UtcDatetime | None, Query(description="The order then, with a time zone")
    ] = None,
) -> OrderResponse:
    """Worked out from the events up to there; 404 where there was no order yet. Give either
    `version` or `time`."""
    if time is not None and version is None:
        found = await store.load(order_id, await store.version_at(order_id, time))
    elif version is not None and time is None:
        found = await store.load(order_id, version)
    else:
        raise Unprocessable("give either version or time", pointer="/version", location="query")
    if found is None:
        raise NotFound("order", order_id if version is None else f"{order_id} in version {version}")
    response.headers["ETag"] = etag(found.version)
    return OrderResponse.model_validate(found.state)
