"""Orders over HTTP: commands with idempotency keys and versions, reads that can wait."""

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Response

from app.dependencies import IdempotencyDep, InventoryDep, OrderReadsDep, OrderServiceDep, PathId
from app.domain.orders import Order, OrderStatus
from app.errors import PreconditionRequired, responses, with_headers
from app.idempotency import Answer
from app.repositories.orders import OrderFilter
from app.schemas import (
    Cursor,
    Id,
    InventoryResponse,
    OrderCreate,
    OrderPage,
    OrderResponse,
    Sku,
    encode_cursor,
)

_STRONG_ETAG = re.compile(r'"([1-9][0-9]{0,9})"')


def etag(version: int) -> str:
    """The version as a strong entity tag (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def get_expected_versions(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match", description="ETag of the version that is to be changed; `*` for any"
        ),
    ] = None,
) -> frozenset[int] | None:
    """The versions that If-Match allows, None for any. What is no ETag of ours matches nothing."""
    if if_match is None:
        raise PreconditionRequired("send the order's ETag in If-Match")
    if if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(match[1]) for tag in tags if (match := _STRONG_ETAG.fullmatch(tag)))


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes the request safe to repeat: the same key gets the same answer",
        examples=["9f1c0a52-8a4e-4c59-9f0c-3d5a5f4f2c11"],
    ),
]


router = APIRouter(prefix="/orders", tags=["orders"], responses=responses(422, 500, 503))
# Apart, so that a module which knows more than the present state can answer for one order.
present = APIRouter(prefix="/orders", tags=["orders"], responses=responses(422, 500, 503))
inventory = APIRouter(prefix="/inventory", tags=["inventory"], responses=responses(422, 500, 503))

_MAX_VERSION = 2**31 - 1
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

    async def work() -> Answer:
        return _created(await service.place(order.user_id, order.order_items()))

    if idempotency_key is None:
        answer = await work()
    else:
        fingerprint = hashlib.sha256(order.model_dump_json().encode()).digest()
        answer = await idempotency.once("POST /orders", idempotency_key, fingerprint, work)
    return Response(answer.body, answer.status, answer.headers, "application/json")


@router.post("/{order_id}/pay", summary="Pay an order", responses=_CHANGE)
async def pay_order(
    order_id: PathId, expected: ExpectedVersions, service: OrderServiceDep, response: Response
) -> OrderResponse:
    """`If-Match` says which version is paid: 412 when the order has changed since."""
    return _present(await service.pay(order_id, expected), response)


@router.post("/{order_id}/cancel", summary="Cancel an order", responses=_CHANGE)
async def cancel_order(
    order_id: PathId, expected: ExpectedVersions, service: OrderServiceDep, response: Response
) -> OrderResponse:
    """`If-Match` says which version is cancelled: 412 when the order has changed since."""
    return _present(await service.cancel(order_id, expected), response)


@present.get(
    "/{order_id}", summary="Get an order", responses=responses(404) | with_headers(200, ETag=_ETAG)
)
async def get_order(
    order_id: PathId,
    orders: OrderReadsDep,
    response: Response,
    min_version: Annotated[
        int | None, Query(ge=1, le=_MAX_VERSION, description="A version known from an ETag")
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
    user_id: Annotated[Id | None, Query()] = None,
    status: OrderStatus | None = None,
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> OrderPage:
    """Pages stay in place while new orders come in."""
    found = await orders.page(OrderFilter(user_id, status), before=cursor, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    return OrderPage(
        items=[OrderResponse.model_validate(order) for order in page],
        next_cursor=encode_cursor(page[-1].id) if more else None,
    )


def _created(order: Order) -> Answer:
    headers = {"Location": f"/orders/{order.id}", "ETag": etag(order.version)}
    body = OrderResponse.model_validate(order).model_dump_json().encode()
    return Answer(201, headers, body)


def _present(order: Order, response: Response) -> OrderResponse:
    response.headers["ETag"] = etag(order.version)
    return OrderResponse.model_validate(order)


@inventory.get("/{sku}", summary="Get how many pieces of a SKU are reserved")
async def get_inventory(sku: Annotated[Sku, Path()], levels: InventoryDep) -> InventoryResponse:
    """Counted by the consumer of `order.created`. There is no catalogue of SKUs: one that nobody
    ordered, or whose orders were not consumed yet, has 0 reserved."""
    return InventoryResponse(sku=sku, reserved=await levels.reserved(sku))
