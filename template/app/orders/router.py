"""Orders over HTTP: commands with idempotency keys and versions, reads that can wait."""

import re
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AfterValidator, BeforeValidator, Field

from app.orders import storage
from app.orders.domain import Order, OrderItem, OrderStatus
from app.orders.repository import InventoryRepository, OrderFilter
from app.orders.service import OrderReads, OrderReadSettings, OrderService
from app.platform.errors import PreconditionRequired
from app.platform.http.dependencies import (
    IdempotencyDep,
    IdempotencyKey,
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
from app.users.repository import UserRepository

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
    """`reserved` counts what was ordered, as far as the consumer of `order.created` has come."""

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
    """Money is a decimal number in a string. `version` is what the ETag says, too."""

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
    return OrderService(storage.repository(uow), UserRepository(uow.session), uow.events)


async def get_order_reads(runtime: RuntimeDep) -> OrderReads:
    settings = runtime.setting(OrderReadSettings)
    return OrderReads(storage.queries(runtime.database.sessions), settings)


async def get_inventory_levels(session: SessionDep) -> InventoryRepository:
    return InventoryRepository(session)


OrderServiceDep = Annotated[OrderService, Depends(get_order_service, scope="function")]
OrderReadsDep = Annotated[OrderReads, Depends(get_order_reads)]
InventoryDep = Annotated[InventoryRepository, Depends(get_inventory_levels, scope="function")]

_STRONG_ETAG = re.compile(r'"([1-9][0-9]{0,9})"')


def etag(version: int) -> str:
    """The version as a strong entity tag (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def versions_in(if_match: str | None) -> frozenset[int] | None:
    """The versions that If-Match allows, None for any. What is no ETag of ours matches nothing.

    Raises PreconditionRequired where there is none.
    """
    if if_match is None:
        raise PreconditionRequired("send the order's ETag in If-Match")
    if if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(match[1]) for tag in tags if (match := _STRONG_ETAG.fullmatch(tag)))


async def get_expected_versions(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match", description="ETag of the version that is to be changed; `*` for any"
        ),
    ] = None,
) -> frozenset[int] | None:
    """Lines of one header are one list (RFC 9110, 5.3), of which FastAPI takes the first only."""
    return versions_in(if_match and ", ".join(request.headers.getlist("If-Match")))


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]

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
    order: OrderCreate,
    service: OrderServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Publishes `order.created`, whose consumer reserves the inventory.

    With an `Idempotency-Key` the request can be repeated for a day: the same key and body get the
    same answer, and order once. A repetition that comes while the first request is still at work
    waits for it. The same key with another body gets 422.
    """

    async def work() -> StoredResponse:
        return _created(await service.place(order.user_id, order.order_items()))

    request = order.model_dump_json()
    return await idempotency.respond("POST /orders", idempotency_key, request, work)


@router.post(
    "/{order_id}/pay", summary="Pay an order", response_model=OrderResponse, responses=_CHANGE
)
async def pay_order(
    order_id: PathId,
    expected: ExpectedVersions,
    service: OrderServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """`If-Match` says which version is paid: 412 when the order has changed since. With an
    `Idempotency-Key` the request can be repeated for a day and gets the same answer."""

    async def work() -> StoredResponse:
        return _changed(await service.pay(order_id, expected))

    scope = f"POST /orders/{order_id}/pay"
    return await idempotency.respond(scope, idempotency_key, _condition(expected), work)


@router.post(
    "/{order_id}/cancel", summary="Cancel an order", response_model=OrderResponse, responses=_CHANGE
)
async def cancel_order(
    order_id: PathId,
    expected: ExpectedVersions,
    service: OrderServiceDep,
    idempotency: IdempotencyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """`If-Match` says which version is cancelled: 412 when the order has changed since. With an
    `Idempotency-Key` the request can be repeated for a day and gets the same answer."""

    async def work() -> StoredResponse:
        return _changed(await service.cancel(order_id, expected))

    scope = f"POST /orders/{order_id}/cancel"
    return await idempotency.respond(scope, idempotency_key, _condition(expected), work)


@router.get(
    "/{order_id}", summary="Get an order", responses=responses(404) | with_headers(200, ETag=_ETAG)
)
async def get_order(
    order_id: PathId,
    orders: OrderReadsDep,
    response: Response,
    min_version: Annotated[
        QueryVersion | None, Query(description="A version known from an ETag")
    ] = None,
) -> OrderResponse:
    """With `min_version` the answer waits briefly until the order has come that far; then 503 with
    `Retry-After`. So one reads what one has written."""
    order = await orders.get(order_id, min_version)
    response.headers["ETag"] = etag(order.version)
    return OrderResponse.model_validate(order)


@router.get("", summary="List orders, newest first")
async def list_orders(
    orders: OrderReadsDep,
    user_id: Annotated[QueryId | None, Query()] = None,
    status: OrderStatus | None = None,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Field(ge=1, le=100), DIGITS, Query()] = 20,
) -> OrderPage:
    """Pages stay in place while new orders come in."""
    found = await orders.page(OrderFilter(user_id, status), before=cursor, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    return OrderPage(
        items=[OrderResponse.model_validate(order) for order in page],
        next_cursor=encode_cursor(page[-1].id) if more else None,
    )


def _created(order: Order) -> StoredResponse:
    headers = {"Location": f"/orders/{order.id}", "ETag": etag(order.version)}
    return StoredResponse(201, headers, _body(order))


def _changed(order: Order) -> StoredResponse:
    return StoredResponse(200, {"ETag": etag(order.version)}, _body(order))


def _body(order: Order) -> bytes:
    return OrderResponse.model_validate(order).model_dump_json().encode()


def _condition(expected: frozenset[int] | None) -> str:
    """Tell requests without a body apart by the versions that they are meant for."""
    return "*" if expected is None else ",".join(map(str, sorted(expected)))


@inventory.get("/{sku}", summary="Get how many pieces of a SKU are reserved")
async def get_inventory(sku: Annotated[Sku, Path()], levels: InventoryDep) -> InventoryResponse:
    """Counted by the consumer of `order.created`. There is no catalogue of SKUs: one that nobody
    ordered, or whose orders were not consumed yet, has 0 reserved."""
    return InventoryResponse(sku=sku, reserved=await levels.reserved(sku))
