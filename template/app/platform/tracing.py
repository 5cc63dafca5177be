"""The request or event that the current work belongs to: correlation, causation, W3C trace context.

The ids travel from request to event to handler to the next event, in headers and in log lines.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CORRELATION_HEADER = "x-correlation-id"
ACTOR_HEADER = "x-actor"
COMMAND_HEADER = "idempotency-key"

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
# What is taken from outside ends up in headers and logs, so it is kept short and printable.
_CORRELATION = re.compile(r"^[A-Za-z0-9._:/+=-]{1,128}$")
_COMMAND = re.compile(r"^[\x21-\x7e]{1,255}$")
_ACTOR = re.compile(r"^[A-Za-z0-9._:/@|+=-]{1,128}$")


@dataclass(frozen=True)
class Trace:
    """`correlation_id` names the whole story, `causation_id` the event that led to this work.

    `command_id` is the same for a repetition of the same request; `actor` is who asks for it.
    """

    correlation_id: str
    causation_id: str | None = None
    traceparent: str | None = None
    command_id: str | None = None
    actor: str | None = None


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace:
    """The trace of the running work, or a new one where none was begun."""
    return _current.get() or Trace(str(uuid4()))


@contextmanager
def bound(trace: Trace) -> Iterator[Trace]:
    """Do the block's work, and its log lines, under `trace`."""
    token = _current.set(trace)
    try:
        with structlog.contextvars.bound_contextvars(correlation_id=trace.correlation_id):
            yield trace
    finally:
        _current.reset(token)


_batch: ContextVar[Callable[[UUID], Trace | None] | None] = ContextVar("batch", default=None)


@contextmanager
def bound_batch(trace_of: Callable[[UUID], Trace | None]) -> Iterator[None]:
    """Do the block's work on several events, each with the trace that `trace_of` tells by its id."""
    token = _batch.set(trace_of)
    try:
        with bound(Trace(str(uuid4()), None, child_of(None))):
            yield
    finally:
        _batch.reset(token)


@contextmanager
def because_of(event_id: UUID) -> Iterator[Trace]:
    """Do the block's work as part of the story of one event of the batch that is handled.

    What a batch handler publishes outside of it has a correlation id of the batch's own.
    """
    trace_of = _batch.get()
    trace = None if trace_of is None else trace_of(event_id)
    with bound(trace or replace(current(), causation_id=str(event_id))) as trace:
        yield trace


def trace_from(
    correlation_id: str | None, traceparent: str | None, causation_id: str | None = None
) -> Trace:
    """The trace that came from outside; what is missing or malformed is made anew."""
    if correlation_id is None or not _CORRELATION.fullmatch(correlation_id):
        correlation_id = str(uuid4())
    return Trace(correlation_id, causation_id, child_of(traceparent))


def _trace_of(headers: Headers) -> Trace:
    trace = trace_from(headers.get(CORRELATION_HEADER), headers.get("traceparent"))
    command_id, actor = headers.get(COMMAND_HEADER, ""), headers.get(ACTOR_HEADER, "")
    return replace(
        trace,
        command_id=command_id if _COMMAND.fullmatch(command_id) else None,
        actor=actor if _ACTOR.fullmatch(actor) else None,
    )


def child_of(traceparent: str | None) -> str:
    """A `traceparent` for a new span in the same trace, or in a new one."""
    span = secrets.token_hex(8)
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return f"00-{secrets.token_hex(16)}-{span}-01"
    version, trace_id, _parent, flags = traceparent.split("-")
    return f"{version}-{trace_id}-{span}-{flags}"


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
        trace = _trace_of(Headers(scope=scope))
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
