"""Metrics of HTTP requests: by template, with few values, whatever a client sends."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from httpx import ASGITransport, AsyncClient
from prometheus_client import REGISTRY

from app.platform.http import metrics
from app.platform.http.boundary import RequestBoundary
from app.platform.http.methods import HeadAsGet
from app.platform.http.metrics import ActiveRequests, known_method
from app.platform.http.tracing import TracingMiddleware
from app.platform.metrics import LabelledHistogram

Labels = tuple[object, ...]


class Requests:
    """A client of an application with nested routers, and what was counted since."""

    def __init__(self, http: AsyncClient) -> None:
        self.http = http
        self._before = metrics.request_duration.totals()

    @property
    def counted(self) -> Counter[Labels]:
        return Counter(metrics.request_duration.totals()) - Counter(self._before)


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    orders = APIRouter(prefix="/orders")
    version = APIRouter(prefix="/v1")
    proceed = asyncio.Event()

    @orders.get("/{order_id}")
    async def read(order_id: int) -> int:
        if order_id == 404:
            raise HTTPException(404)
        return order_id // (order_id - 13)  # 13 fails

    @orders.post("/{order_id}/slow")
    async def wait(order_id: int) -> int:
        await proceed.wait()
        return order_id

    @orders.post("/{order_id}/proceed")
    async def release(order_id: int) -> int:
        proceed.set()
        return order_id

    app = FastAPI()
    version.include_router(orders)
    app.include_router(version)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestBoundary)
    app.add_middleware(TracingMiddleware)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as http:
        yield Requests(http)


async def test_requests_are_counted_by_template_and_status(requests: Requests) -> None:
    for order_id in ("1", "2", "404", "13", "x"):
        await requests.http.get(f"/v1/orders/{order_id}")
    await requests.http.head("/v1/orders/1")
    await requests.http.delete("/v1/orders/1")

    template = "/v1/orders/{order_id}"
    assert requests.counted == {
        (template, "GET", 200): 2,
        (template, "GET", 404): 1,
        (template, "GET", 500): 1,
        (template, "GET", 422): 1,
        (template, "HEAD", 200): 1,
        (template, "DELETE", 405): 1,
    }


async def test_hostile_requests_make_few_series(requests: Requests) -> None:
    """Neither ids, unknown paths, invented methods nor queries may add a series each."""
    for number in range(100):
        noise = secrets.token_hex(4)
        await requests.http.request(f"X{noise}".upper(), f"/v1/orders/{number}")
        await requests.http.request(noise, f"/{noise}")
        await requests.http.get(f"/{noise}/{number}")
        await requests.http.get(f"/v1/orders/{number}{noise}g?{noise}={noise}")
        await requests.http.get(f"/v1/orders/{number + 1000}", headers={"Host": noise})

    assert requests.counted == {
        ("/v1/orders/{order_id}", "_OTHER", 405): 100,
        ("", "_OTHER", 404): 100,
        ("", "GET", 404): 100,
        ("/v1/orders/{order_id}", "GET", 422): 100,
        ("/v1/orders/{order_id}", "GET", 200): 100,
    }


@pytest.mark.parametrize("method", ["get", "GETS", "", "PROPFIND", "\ud800", "X" * 10_000])
def test_an_unknown_method_is_one_value(method: str) -> None:
    assert known_method(method) == "_OTHER"


async def test_requests_in_progress_are_counted(requests: Requests) -> None:
    def active() -> float:
        labels = {"http_request_method": "POST"}
        return REGISTRY.get_sample_value("http_server_active_requests", labels) or 0

    before = active()
    waiting = asyncio.create_task(requests.http.post("/v1/orders/1/slow"))
    async with asyncio.timeout(30):
        while active() == before:
            await asyncio.sleep(0.01)
    assert active() == before + 1
    await requests.http.post("/v1/orders/1/proceed")
    assert (await waiting).status_code == 200
    assert active() == before


async def test_what_is_measured_has_the_names_of_opentelemetry(requests: Requests) -> None:
    await requests.http.get("/v1/orders/7")
    labels = {
        "http_route": "/v1/orders/{order_id}",
        "http_request_method": "GET",
        "http_response_status_code": "200",
    }
    name = "http_server_request_duration_seconds"
    assert (REGISTRY.get_sample_value(f"{name}_count", labels) or 0) >= 1
    assert REGISTRY.get_sample_value(f"{name}_bucket", {**labels, "le": "10.0"}) is not None


def test_collecting_nothing_gives_no_samples() -> None:
    histogram = LabelledHistogram("empty_seconds", "Nothing", ["label"], [1, 2])
    families = [*histogram.collect(), *ActiveRequests().collect()]
    assert [sample for family in families for sample in family.samples] == []
