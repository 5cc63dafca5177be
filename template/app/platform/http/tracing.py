"""The trace of a request: bound for its work, returned to the caller, logged and measured."""

import re
import time
from dataclasses import replace

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.platform.http.metrics import active_requests, known_method, request_duration, route_of
from app.platform.tracing import Trace, bind_trace, trace_from

CORRELATION_HEADER = "x-correlation-id"
ACTOR_HEADER = "x-actor"
COMMAND_HEADER = "idempotency-key"

# Values from outside end up in headers and logs, so they must be short and printable.
_COMMAND_ID = re.compile(r"^[\x21-\x7e]{1,255}$")
_ACTOR = re.compile(r"^[A-Za-z0-9._:/@|+=-]{1,128}$")

_UNLOGGED_PATHS = ("/health/", "/metrics")  # polled every few seconds

log = structlog.get_logger(__name__)


class TracingMiddleware:
    """A middleware that binds the caller's trace, or a new one, and logs and measures the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = _trace_of(Headers(scope=scope))
        method = known_method(scope["method"])
        active_requests.add(method, 1)
        started = time.perf_counter()
        status = 500

        async def send_with_correlation_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])  # optional in ASGI
                MutableHeaders(scope=message)[CORRELATION_HEADER] = trace.correlation_id
            await send(message)

        with bind_trace(trace):
            try:
                await self._app(scope, receive, send_with_correlation_id)
            finally:
                seconds = time.perf_counter() - started
                active_requests.add(method, -1)
                request_duration.observe((route_of(scope), method, status), seconds)
                if not scope["path"].startswith(_UNLOGGED_PATHS):
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=status,
                        milliseconds=round(seconds * 1000, 1),
                    )


def _trace_of(headers: Headers) -> Trace:
    trace = trace_from(headers.get(CORRELATION_HEADER), headers.get("traceparent"))
    command_id, actor = headers.get(COMMAND_HEADER, ""), headers.get(ACTOR_HEADER, "")
    return replace(
        trace,
        command_id=command_id if _COMMAND_ID.fullmatch(command_id) else None,
        actor=actor if _ACTOR.fullmatch(actor) else None,
    )
