"""The trace of the current work: ids of our own, and OpenTelemetry's context and spans.

The ids travel in headers, from a request to its events, to their handlers and to the events that
those publish. Log lines carry the correlation id.

The context of OpenTelemetry (`traceparent`, `tracestate`) travels beside them, whether tracing is on
or off. Spans are made while it is on, and only in traces that are sampled.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from structlog.contextvars import bind_contextvars, reset_contextvars

# The value of a header may be null in Kafka.
Header = tuple[str, bytes | None]
Attributes = Mapping[str, AttributeValue]

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_W3C_HEADERS = frozenset([TRACEPARENT, TRACESTATE])
_NO_CONTEXT = Context()
_NO_SPAN = nullcontext(INVALID_SPAN)
_W3C = TraceContextTextMapPropagator()

# Values from outside end up in headers and logs, so they must be short and printable.
_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._:/+=-]{1,128}$")


# The ids


@dataclass(frozen=True)
class Trace:
    """The ids of the work in progress.

    `correlation_id` is shared by everything that one request leads to. `causation_id` is the id of
    the event that is being handled. `command_id` is the request's Idempotency-Key, `actor` the
    caller on whose behalf it was sent.
    """

    correlation_id: str
    causation_id: str | None = None
    command_id: str | None = None
    actor: str | None = None


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace:
    """Return the trace of the current work, or a new one if none is bound."""
    return _current.get() or Trace(str(uuid4()))


class _Bound:
    """A block with a trace, which its log lines show, and with a context."""

    __slots__ = ("_attached", "_context", "_logged", "_token", "_trace")

    _token: Token[Trace | None]
    _logged: Mapping[str, Token[Any]]
    _attached: Token[Context]

    def __init__(self, trace: Trace, context: Context | None) -> None:
        self._trace, self._context = trace, context

    def __enter__(self) -> Trace:
        self._token = _current.set(self._trace)
        self._logged = bind_contextvars(correlation_id=self._trace.correlation_id)
        if self._context is not None:
            self._attached = attach(self._context)
        return self._trace

    def __exit__(self, *_error: object) -> None:
        if self._context is not None:
            detach(self._attached)
        reset_contextvars(**self._logged)
        _current.reset(self._token)


def bind_trace(trace: Trace, context: Context | None = None) -> AbstractContextManager[Trace]:
    """Bind `trace` to the block and to its log lines; `context` is the one of OpenTelemetry."""
    return _Bound(trace, context)


def trace_from(correlation_id: str | None, causation_id: str | None = None) -> Trace:
    """Continue a trace. A missing or malformed correlation id becomes the cause's id, or a new one."""
    if correlation_id is None or not _CORRELATION_ID.fullmatch(correlation_id):
        correlation_id = causation_id or str(uuid4())
    return Trace(correlation_id, causation_id)


FindOrigin = Callable[[UUID], tuple[Trace, Context] | None]
_batch: ContextVar[FindOrigin | None] = ContextVar("batch", default=None)


@contextmanager
def bind_batch(find_origin: FindOrigin) -> Iterator[None]:
    """Bind a new trace to a block that handles a batch.

    `find_origin` maps the id of an event to its trace, and to the context that it arrived with.
    """
    token = _batch.set(find_origin)
    try:
        with bind_trace(Trace(str(uuid4()))):
            yield
    finally:
        _batch.reset(token)


@contextmanager
def caused_by(event_id: UUID) -> Iterator[Trace]:
    """Bind the trace and the context of one event of the current batch to the block.

    A batch handler publishes in such a block what one event leads to. Outside of it, published
    events carry the correlation id of the batch.
    """
    find_origin = _batch.get()
    found = None if find_origin is None else find_origin(event_id)
    trace, context = found or (replace(current(), causation_id=str(event_id)), None)
    with bind_trace(trace, context):
        yield trace


# The context


class _Unsampled(Context):
    """A context whose span is not sampled, so that its type tells this without a look at the span.

    Nearly every request and batch has one, and each of their statements asks.
    """


class _RemoteSpan(NonRecordingSpan):
    """The span of a sender, whose headers are parsed when somebody asks for it."""

    def __init__(self, headers: Mapping[str, list[str]]) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self._headers: Mapping[str, list[str]] | None = headers

    def get_span_context(self) -> SpanContext:
        if self._headers is not None:
            found = _W3C.extract(self._headers)
            self._context, self._headers = get_current_span(found).get_span_context(), None
        return self._context


def remote_context(headers: Mapping[str, list[str]]) -> Context:
    """Return the context in `traceparent` and `tracestate`; a malformed one is as if it were missing."""
    if TRACEPARENT not in headers:
        return _NO_CONTEXT
    return set_span_in_context(_RemoteSpan(headers), _NO_CONTEXT)


def context_of(headers: Iterable[Header]) -> Context:
    """Return the context in the headers of a message; of several `traceparent`, the last one counts."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if value is not None and name in _W3C_HEADERS:
            before = [] if name == TRACEPARENT else found.get(name, [])
            found[name] = [*before, value.decode("utf-8", "replace")]
    return remote_context(found)


def context_of_traceparent(traceparent: str | None) -> Context:
    """Return the context in the value of a header `traceparent`."""
    return remote_context({} if traceparent is None else {TRACEPARENT: [traceparent]})


def headers_of_context(context: Context | None = None) -> tuple[Header, ...]:
    """Return `traceparent` and `tracestate` of `context` as headers of a message."""
    return tuple((name, value.encode()) for name, value in carrier_of(context).items())


def traceparent_of(context: Context | None = None) -> str | None:
    """Return the `traceparent` of `context`, by default of the current one."""
    return carrier_of(context).get(TRACEPARENT)


def carrier_of(context: Context | None = None) -> dict[str, str]:
    """Return `traceparent` and `tracestate` of `context`, by default of the current one, if it is valid."""
    carrier: dict[str, str] = {}
    context = get_current() if context is None else context
    if get_current_span(context) is not INVALID_SPAN:
        _W3C.inject(carrier, context)
    return carrier


def link_of(context: Context, attributes: Attributes | None = None) -> Link | None:
    """Return a link to the span of `context`, or None if it has none."""
    span_context = get_current_span(context).get_span_context()
    return Link(span_context, attributes) if span_context.is_valid else None


# The spans


class _Process:
    """The tracer of this process, while tracing is on."""

    tracer: Tracer | None = None


_process = _Process()


@contextmanager
def recording(tracer: Tracer) -> Iterator[None]:
    """Make spans with `tracer` during the block."""
    before, _process.tracer = _process.tracer, tracer
    try:
        yield
    finally:
        _process.tracer = before


def is_on() -> bool:
    return _process.tracer is not None


def is_sampled(context: Context | None = None) -> bool:
    """Return whether tracing is on, and `context` (by default the current one) is sampled."""
    return is_on() and get_current_span(context).get_span_context().trace_flags.sampled


def is_recorded() -> bool:
    """Return whether the current span is recorded."""
    context = get_current()
    return type(context) is not _Unsampled and get_current_span(context).is_recording()


def is_unsampled(context: Context | None = None) -> bool:
    """Return whether `context` (by default the current one) is of a trace that is not sampled.

    Its children are not, either.
    """
    context = get_current() if context is None else context
    if type(context) is _Unsampled:
        return True
    parent = get_current_span(context).get_span_context()
    return parent.is_valid and not parent.trace_flags.sampled


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: Context | None = None,
    links: Sequence[Link] = (),
    attributes: Attributes | Callable[[], Attributes] | None = None,
) -> AbstractContextManager[Span]:
    """Make a span for the block, as a child of `parent`, or of the current span.

    An empty `parent` makes it a root. An exception is recorded, and marks the span as failed.
    While tracing is off, and in a trace that is not sampled, no span is made: `parent` is the
    context of the block.
    """
    tracer = _process.tracer
    if tracer is None:
        return _NO_SPAN if parent is None else _Attached(parent)
    outer = get_current() if parent is None else parent
    if is_unsampled(outer):
        return _NO_SPAN if parent is None else _Attached(_Unsampled(outer))
    made = _start(tracer, name, kind, outer, links, attributes)
    context = set_span_in_context(made, outer)
    return _recorded(made, context) if made.is_recording() else _Attached(_Unsampled(context), made)


def begin_span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: Context | None = None,
    links: Sequence[Link] = (),
    attributes: Attributes | Callable[[], Attributes] | None = None,
    start_time: int | None = None,
    trace: Trace | None = None,
) -> Span | None:
    """Begin a span that the caller ends, and that is not the current one.

    Return None where `span` makes none. `start_time` is in nanoseconds since the epoch, as of `time_ns`.
    Its ids are those of `trace`, or of the current work.
    """
    tracer = _process.tracer
    outer = get_current() if parent is None else parent
    if tracer is None or is_unsampled(outer):
        return None
    begun = _start(tracer, name, kind, outer, links, attributes, start_time, trace)
    return begun if begun.is_recording() else None


def fail_span(span: Span, error: BaseException) -> None:
    """Record `error` in `span`, and mark it as failed."""
    if span.is_recording():
        span.record_exception(error)
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR)


def unsampled() -> AbstractContextManager[object]:
    """Keep the block out of every trace: what it does and sends is not sampled."""
    if not is_on():
        return _NO_SPAN
    ids = random.getrandbits(128) or 1, random.getrandbits(64) or 1
    span = NonRecordingSpan(SpanContext(*ids, is_remote=False))
    return _Attached(_Unsampled(set_span_in_context(span, _NO_CONTEXT)))


def exemplar() -> dict[str, str] | None:
    """Return the labels of an exemplar that leads to the current trace; None if it is not sampled."""
    if not is_recorded():
        return None
    context = get_current_span().get_span_context()
    return {"trace_id": format_trace_id(context.trace_id)} if context.trace_flags.sampled else None


def _start(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    parent: Context,
    links: Sequence[Link],
    attributes: Attributes | Callable[[], Attributes] | None,
    start_time: int | None = None,
    trace: Trace | None = None,
) -> Span:
    own = attributes() if callable(attributes) else attributes
    ids = _ids(trace or _current.get())
    return tracer.start_span(name, parent, kind, {**(own or {}), **ids}, links, start_time)


def _ids(trace: Trace | None) -> dict[str, str]:
    if trace is None:
        return {}
    ids = {
        "app.correlation_id": trace.correlation_id,
        "app.causation_id": trace.causation_id,
        "app.command_id": trace.command_id,
        "app.actor": trace.actor,
    }
    return {name: value for name, value in ids.items() if value is not None}


@contextmanager
def _recorded(made: Span, context: Context) -> Iterator[Span]:
    token = attach(context)
    try:
        yield made
    except Exception as error:
        fail_span(made, error)
        raise
    finally:
        detach(token)
        made.end()


class _Attached:
    """A block with a context, without a span that is recorded."""

    __slots__ = ("_context", "_span", "_token")

    _token: Token[Context]

    def __init__(self, context: Context, span: Span = INVALID_SPAN) -> None:
        self._context, self._span = context, span

    def __enter__(self) -> Span:
        self._token = attach(self._context)
        return self._span

    def __exit__(self, *_error: object) -> None:
        detach(self._token)
