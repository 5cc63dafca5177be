"""Each request is the beginning, or the continuation, of a story: it gets its trace here."""

import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.tracing import CORRELATION_HEADER, bound, trace_from

log = structlog.get_logger(__name__)

_QUIET_PATHS = ("/health/", "/metrics")


class TracingMiddleware:
    """Binds the caller's correlation id and trace, or new ones, and logs the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = trace_from(headers.get(CORRELATION_HEADER), headers.get("traceparent"))
        started = time.perf_counter()
        status = 500

        async def send_with_correlation(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])  # optional in ASGI
                MutableHeaders(scope=message)[CORRELATION_HEADER] = trace.correlation_id
            await send(message)

        with bound(trace):
            try:
                await self._app(scope, receive, send_with_correlation)
            finally:
                if not scope["path"].startswith(_QUIET_PATHS):
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=status,
                        milliseconds=round((time.perf_counter() - started) * 1000, 1),
                    )
