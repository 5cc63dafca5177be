"""The trace of the current work: correlation and causation ids, and the W3C trace context.

The ids travel in headers, from a request to its events, to their handlers and to the events that
those publish. Log lines carry the correlation id.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import structlog

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
# Values from outside end up in headers and logs, so they must be short and printable.
_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._:/+=-]{1,128}$")


@dataclass(frozen=True)
class Trace:
    """The ids of the work in progress.

    `correlation_id` is shared by everything that one request leads to. `causation_id` is the id of
    the event that is being handled. `command_id` is the request's Idempotency-Key, `actor` the
    caller on whose behalf it was sent.
    """

    correlation_id: str
    causation_id: str | None = None
    traceparent: str | None = None
    command_id: str | None = None
    actor: str | None = None


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace:
    """Return the trace of the current work, or a new one if none is bound."""
    return _current.get() or Trace(str(uuid4()))


@contextmanager
def bind_trace(trace: Trace) -> Iterator[Trace]:
    """Bind `trace` to the block and to its log lines."""
    token = _current.set(trace)
    try:
        with structlog.contextvars.bound_contextvars(correlation_id=trace.correlation_id):
            yield trace
    finally:
        _current.reset(token)


_batch: ContextVar[Callable[[UUID], Trace | None] | None] = ContextVar("batch", default=None)


@contextmanager
def bind_batch(find_trace: Callable[[UUID], Trace | None]) -> Iterator[None]:
    """Bind a new trace to a block that handles a batch; `find_trace` maps event ids to traces."""
    token = _batch.set(find_trace)
    try:
        with bind_trace(Trace(str(uuid4()), None, child_traceparent(None))):
            yield
    finally:
        _batch.reset(token)


@contextmanager
def caused_by(event_id: UUID) -> Iterator[Trace]:
    """Bind the trace of one event of the current batch to the block.

    A batch handler publishes in such a block what one event leads to. Outside of it, published
    events carry the correlation id of the batch.
    """
    find_trace = _batch.get()
    trace = None if find_trace is None else find_trace(event_id)
    with bind_trace(trace or replace(current(), causation_id=str(event_id))) as trace:
        yield trace


def trace_from(
    correlation_id: str | None, traceparent: str | None, causation_id: str | None = None
) -> Trace:
    """Continue a trace from outside. Missing and malformed ids are replaced by new ones."""
    if correlation_id is None or not _CORRELATION_ID.fullmatch(correlation_id):
        correlation_id = str(uuid4())
    return Trace(correlation_id, causation_id, child_traceparent(traceparent))


def child_traceparent(traceparent: str | None) -> str:
    """Return a `traceparent` for a new span: in the same trace if it is well formed, or a new one."""
    span = secrets.token_hex(8)
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return f"00-{secrets.token_hex(16)}-{span}-01"
    version, trace_id, _parent, flags = traceparent.split("-")
    return f"{version}-{trace_id}-{span}-{flags}"
