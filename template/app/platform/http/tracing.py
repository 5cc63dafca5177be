"""The trace of a request: bound for its work, returned to the caller, logged and measured."""

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache

import structlog
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.platform import tracing
from app.platform.http.metrics import active_requests, known_method, request_duration, route_of
from app.platform.tracing import Trace, bind_trace, trace_from

CORRELATION_HEADER = "x-correlation-id"
ACTOR_HEADER = "x-actor"
COMMAND_HEADER = "idempotency-key"

# Values from outside end up in headers and logs, so they must be short and printable.
_COMMAND_ID = re.compile(r"^[\x21-\x7e]{1,255}$")
_ACTOR = re.compile(r"^[A-Za-z0-9._:/@|+=-]{1,128}$")

# Asked for every few seconds, so neither logged nor traced; a path that only begins like one is.
_POLLED_PATHS = frozenset({"/health/live", "/health/ready", "/metrics"})

_W3C_FIELDS = {name.encode(): name for name in (tracing.TRACEPARENT, tracing.TRACESTATE)}

log = structlog.get_logger(__name__)


class TracingMiddleware:
    """A middleware that binds the caller's trace, or a new one, and logs and measures the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = _trace_of(headers)
        method = known_method(scope["method"])
        active_requests.add(method, 1)
        started = time.perf_counter()
        status = 500

        async def send_with_correlation_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if span.is_recording():
                    _describe_response(span, method, route_of(scope), status)
                message.setdefault("headers", [])  # optional in ASGI
                MutableHeaders(scope=message)[CORRELATION_HEADER] = trace.correlation_id
            await send(message)

        is_polled = scope["path"] in _POLLED_PATHS
        with (
            bind_trace(trace),
            nullcontext(INVALID_SPAN)
            if is_polled
            else _server_span(scope, method, headers) as span,
        ):
            try:
                await self._app(scope, receive, send_with_correlation_id)
            finally:
                seconds = time.perf_counter() - started
                active_requests.add(method, -1)
                labels = route_of(scope), method, status
                exemplar = tracing.exemplar() if span.is_recording() else None
                request_duration.observe(labels, seconds, exemplar=exemplar)
                if not is_polled:
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=status,
                        milliseconds=round(seconds * 1000, 1),
                    )


def _trace_of(headers: Headers) -> Trace:
    trace = trace_from(headers.get(CORRELATION_HEADER))
    command_id, actor = headers.get(COMMAND_HEADER, ""), headers.get(ACTOR_HEADER, "")
    return replace(
        trace,
        command_id=command_id if _COMMAND_ID.fullmatch(command_id) else None,
        actor=actor if _ACTOR.fullmatch(actor) else None,
    )


def _server_span(scope: Scope, method: str, headers: Headers) -> AbstractContextManager[Span]:
    # Neither the query nor the client's address: either may be personal data.
    def attributes() -> dict[str, str]:
        known = {
            "http.request.method": method,
            "http.request.method_original": scope["method"] if method == "_OTHER" else "",
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
            "network.protocol.version": scope.get("http_version", ""),
            "user_agent.original": headers.get("user-agent", ""),
        }
        return {name: value for name, value in known.items() if value}

    name = _span_name(method, "")
    return tracing.span(name, SpanKind.SERVER, parent=_context_of(headers), attributes=attributes)


def _context_of(headers: Headers) -> Context | None:
    """Return the caller's context; None without one, as long as tracing is off."""
    if tracing.is_on():  # with the propagators of OTEL_PROPAGATORS
        found = _values_of(_fields_of(propagate.get_global_textmap()), headers)
        return propagate.extract(found) if found else None
    found = _values_of(_W3C_FIELDS, headers)
    return tracing.remote_context(found) if found else None


@lru_cache(maxsize=1)
def _fields_of(propagator: TextMapPropagator) -> dict[bytes, str]:
    """Return the names of a propagator's headers, by the names that ASGI gives them."""
    return {name.lower().encode(): name for name in propagator.fields}


def _values_of(fields: Mapping[bytes, str], headers: Headers) -> dict[str, list[str]]:
    # One pass, because most requests have none of them.
    found: dict[str, list[str]] = {}
    for name, value in headers.raw:
        if name in fields:
            found.setdefault(fields[name], []).append(value.decode("latin-1"))
    return found


def _describe_response(span: Span, method: str, route: str, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if route:
        span.update_name(_span_name(method, route))
        span.set_attribute("http.route", route)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


def _span_name(method: str, route: str) -> str:
    return f"{'HTTP' if method == '_OTHER' else method} {route}".rstrip()
