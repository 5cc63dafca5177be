"""Metrics of HTTP requests, under the names of OpenTelemetry as Prometheus translates them."""

from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from app.platform.metrics import LabelledHistogram

# Any other is `_OTHER`: a client may invent methods.
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
# As OpenTelemetry advises for this histogram.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

request_duration = LabelledHistogram(
    "http_server_request_duration_seconds",
    "From the head of a request to the end of its response, by route, method and status",
    ["http_route", "http_request_method", "http_response_status_code"],
    _BUCKETS,
)
REGISTRY.register(request_duration)


class ActiveRequests(Collector):
    """The number of requests that are being answered, by method."""

    def __init__(self) -> None:
        self._active: dict[str, int] = {}

    def add(self, method: str, change: int) -> None:
        self._active[method] = self._active.get(method, 0) + change

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "http_server_active_requests",
            "Requests that are being answered",
            labels=["http_request_method"],
        )
        for method, count in list(self._active.items()):
            family.add_metric([method], count)
        yield family


active_requests = ActiveRequests()
REGISTRY.register(active_requests)


def known_method(method: str) -> str:
    return method if method in _METHODS else "_OTHER"


def route_of(scope: Scope) -> str:
    """Return the template of the route that was found, or "": never the path, which has ids."""
    route = scope.get("route")
    # FastAPI's route lacks the prefixes of the routers that include its own.
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        route = context
    return getattr(route, "path", "")
