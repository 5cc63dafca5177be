"""Orders over HTTP: commands with idempotency keys and versions, and queries."""

from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import AfterValidator, BeforeValidator, Field

from app.orders import storage
from app.orders.domain import Order, OrderItem, OrderStatus
from app.orders.repository import InventoryRepository, OrderFilter, OrderQueries, OrderView
from app.orders.service import OrderReadSettings, OrderService
from app.platform.http.dependencies import (
    IdempotencyDep,
    PathId,
    RuntimeDep,
    SessionDep,
    UnitOfWorkDep,
)
from app.platform.http.idempotency import StoredResponse
from app.platform.http.problems import responses, with_headers
from app.platform.http.schemas import (
    DIGITS,
    Cursor,
    Id,
    Integer,
    QueryId,
    QueryVersion,
    RequestModel,
    ResponseModel,
    encode_cursor,
    require_plain_decimal,
)
from app.platform.http.versions import ExpectedVersions, etag, wait_for_version

_CENT = Decimal("0.01")


def _in_cents(value: Decimal) -> Decimal:
    return abs(value.quantize(_CENT))  # abs, because there is a negative zero


Sku = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64, examples=["tea-250g"])
]
Quantity = Annotated[Integer, Field(ge=1, le=1_000_000, examples=[2])]
Money = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=2, examples=["3.50"]),
    BeforeValidator(require_plain_decimal),
    AfterValidator(_in_cents),
]


class InventoryResponse(ResponseModel):
    """`reserved` is the number that the consumer of `order.created` has counted so far."""

    sku: str
    reserved: int


class OrderItemCreate(RequestModel):
    sku: Sku
    quantity: Quantity
    unit_price: Money


class OrderCreate(RequestModel):
    user_id: Id
    items: Annotated[list[OrderItemCreate], Field(min_length=1, max_length=100)]

    def order_items(self) -> list[OrderItem]:
        return [OrderItem(item.sku, item.quantity, item.unit_price) for item in self.items]


class OrderItemResponse(ResponseModel):
    sku: str
    quantity: int
    unit_price: Annotated[Decimal, Field(examples=["3.50"])]


class OrderResponse(ResponseModel):
    """Money is a decimal number in a string. `version` is also the ETag."""

    id: int
    user_id: int
    items: list[OrderItemResponse]
    total: Annotated[Decimal, Field(examples=["7.00"])]
    status: OrderStatus
    version: int


class OrderPage(ResponseModel):
    """Newest first. `next_cursor` is null on the last page."""

    items: list[OrderResponse]
    next_cursor: str | None


async def get_order_service(uow: UnitOfWorkDep) -> OrderService:
    return OrderService(storage.repository(uow), uow.events)


async def get_order_queries(runtime: RuntimeDep) -> OrderQueries:
    return storage.queries(runtime.database.sessions)


async def get_version_wait(runtime: RuntimeDep) -> float:
    return runtime.setting(OrderReadSettings).orders_min_version_wait_seconds


OrderServiceDep = Annotated[OrderService, Depends(get_order_service, scope="function")]
OrderQueriesDep = Annotated[OrderQueries, Depends(get_order_queries)]
VersionWaitSeconds = Annotated[float, Depends(get_version_wait)]
MinVersion = Annotated[QueryVersion | None, Query(description="A version known from an ETag")]

router = APIRouter(prefix="/orders", tags=["orders"], responses=responses(422, 500, 503))
inventory = APIRouter(prefix="/inventory", tags=["inventory"], responses=responses(422, 500, 503))

_ETAG = "The order's version"
_CHANGE = responses(404, 409, 412, 428) | with_headers(200, ETag=_ETAG)


@router.post(
    "",
    status_code=201,
    summary="Place an order",
    response_model=OrderResponse,
    responses=with_headers(201, Location="The order's URL", ETag=_ETAG),
)
async def place_order(
    order: OrderCreate, service: OrderServiceDep, idempotency: IdempotencyDep
) -> Response:
    """Publishes `order.created`, whose consumer reserves the inventory.

    With an `Idempotency-Key` the request can be repeated for a day: the same key and body get the
    same response, and order once. A repetition waits for a first request that is still running.
    The same key with another body gets 422.
    """

    async def place() -> StoredResponse:
        placed = await service.place(order.user_id, order.order_items())
        return _response(201, placed, Location=f"/orders/{placed.id}")

    return await idempotency.respond("POST /orders", order.model_dump_json(), place)


@router.post(
    "/{order_id}/pay", summary="Pay an order", response_model=OrderResponse, responses=_CHANGE
)
async def pay_order(
    order_id: PathId,
    expected: ExpectedVersions,
    service: OrderServiceDep,
    idempotency: IdempotencyDep,
) -> Response:
    """`If-Match` names the version to pay: 412 if the order has changed since. With an
    `Idempotency-Key` the request can be repeated for a day, and gets the same response."""

    async def pay() -> StoredResponse:
        return _response(200, await service.pay(order_id, expected))

    return await idempotency.respond(f"POST /orders/{order_id}/pay", _condition(expected), pay)


@router.post(
    "/{order_id}/cancel", summary="Cancel an order", response_model=OrderResponse, responses=_CHANGE
)
async def cancel_order(
    order_id: PathId,
    expected: ExpectedVersions,
    service: OrderServiceDep,
    idempotency: IdempotencyDep,
) -> Response:
    """`If-Match` names the version to cancel: 412 if the order has changed since. With an
    `Idempotency-Key` the request can be repeated for a day, and gets the same response."""

    async def cancel() -> StoredResponse:
        return _response(200, await service.cancel(order_id, expected))

    scope = f"POST /orders/{order_id}/cancel"
    return await idempotency.respond(scope, _condition(expected), cancel)


@router.get(
    "/{order_id}", summary="Get an order", responses=responses(404) | with_headers(200, ETag=_ETAG)
)
async def get_order(
    order_id: PathId,
    queries: OrderQueriesDep,
    wait_seconds: VersionWaitSeconds,
    response: Response,
    min_version: MinVersion = None,
) -> OrderResponse:
    """With `min_version` the response waits briefly until the order has reached that version; then
    503 with `Retry-After`. So a client reads its own writes."""
    order = await wait_for_version(
        lambda: queries.get(order_id), _version, min_version, "order", order_id, wait_seconds
    )
    response.headers["ETag"] = etag(order.version)
    return OrderResponse.model_validate(order)


@router.get("", summary="List orders, newest first")
async def list_orders(
    queries: OrderQueriesDep,
    user_id: Annotated[QueryId | None, Query()] = None,
    status: OrderStatus | None = None,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Field(ge=1, le=100), DIGITS, Query()] = 20,
) -> OrderPage:
    """Pages stay in place while new orders come in."""
    found = await queries.page(OrderFilter(user_id, status), before=cursor, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    return OrderPage(
        items=[OrderResponse.model_validate(order) for order in page],
        next_cursor=encode_cursor(page[-1].id) if more else None,
    )


def _version(order: OrderView) -> int:
    return order.version


def _response(status: int, order: Order, **headers: str) -> StoredResponse:
    body = OrderResponse.model_validate(order)
    return StoredResponse.of(status, body, ETag=etag(order.version), **headers)


def _condition(expected: frozenset[int] | None) -> str:
    """Identify a request without a body by the versions that it expects."""
    return "*" if expected is None else ",".join(map(str, sorted(expected)))


@inventory.get("/{sku}", summary="Get how many pieces of a SKU are reserved")
async def get_inventory(sku: Annotated[Sku, Path()], session: SessionDep) -> InventoryResponse:
    """Counted by the consumer of `order.created`. There is no catalogue of SKUs: one without
    consumed orders has 0 reserved."""
    return InventoryResponse(sku=sku, reserved=await InventoryRepository(session).reserved(sku))
