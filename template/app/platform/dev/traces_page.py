"""The page `/dev/traces` of `app dev`: the last traces of this process, without a collector."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from string import Template
from threading import Lock
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from starlette.responses import HTMLResponse, JSONResponse

from app.platform.terminal import one_line, printable

PATH = "/dev/traces"
TRACES = 200
SPANS = 500  # of a trace; further ones are counted

# Requests of these are left out: they say nothing about the service.
_PAGES = (PATH, "/console", "/docs", "/openapi.json", "/asyncapi")

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="${root}docs/assets/favicon-32x32.png">
<style>
:root { color-scheme: light dark; --line: #8884;
  --bar: light-dark(#2f74c0, #6aa7e8); --error: light-dark(#c62f2f, #f07f7f) }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; font: 1rem/1.5 system-ui, sans-serif }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right; white-space: nowrap }
.row { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 4fr) 6rem; gap: 0 1rem;
  align-items: start; border-bottom: 1px solid var(--line); padding: .2rem 0 }
.track { position: relative; height: .7rem; margin-top: .4rem; background: var(--line) }
.bar { position: absolute; top: 0; bottom: 0; min-width: 2px; background: var(--bar) }
.error .bar { background: var(--error) }
.badge { color: var(--error); font-weight: 600 }
.quiet { opacity: .7 }
.number { text-align: right; font-variant-numeric: tabular-nums }
summary, p, td, dd, h1 { overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr); gap: 0 1rem;
  margin: .3rem 0 .8rem; font-size: .9rem }
dd { margin: 0; white-space: pre-wrap }
@media (max-width: 45rem) {
  .row { grid-template-columns: minmax(0, 1fr) 6rem }
  .track { grid-column: 1 / -1; grid-row: 2 }
  dl { grid-template-columns: minmax(0, 1fr) }
  dd { margin-bottom: .3rem }
  .wide { display: none }
}
</style>
</head>
<body>
$body
</body>
</html>
""")


@dataclass(frozen=True)
class StoredTrace:
    """The spans of a trace that have ended here, in the order of their start."""

    trace_id: str
    spans: tuple[ReadableSpan, ...]
    left_out: int

    @property
    def started(self) -> int:
        return _start(self.spans[0])

    @property
    def milliseconds(self) -> float:
        return (max(map(_end, self.spans)) - self.started) / 1e6

    @property
    def has_error(self) -> bool:
        return any(map(_failed, self.spans))

    @property
    def linked(self) -> set[str]:
        """The traces that a batch has messages of; none for a trace that began with a request."""
        first = self.spans[0]
        if first.parent is not None:
            return set()
        return {format_trace_id(link.context.trace_id) for link in first.links}

    def tree(self) -> Iterator[tuple[int, ReadableSpan]]:
        """Yield each span after its parent, with its depth."""
        here = {span.context.span_id for span in self.spans}
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in reversed(self.spans):
            parent = span.parent.span_id if span.parent is not None else None
            children.setdefault(parent if parent in here else None, []).append(span)
        waiting = [(0, span) for span in children.get(None, [])]
        while waiting:
            depth, span = waiting.pop()
            yield depth, span
            waiting += [(depth + 1, child) for child in children.get(span.context.span_id, [])]


class TraceBuffer(SpanProcessor):
    """The last traces with spans that ended in this process."""

    def __init__(self, traces: int = TRACES, spans: int = SPANS) -> None:
        self._most_traces, self._most_spans = traces, spans
        self._found: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._left_out: dict[int, int] = {}
        self._lock = Lock()  # a span may end in any thread

    def on_end(self, span: ReadableSpan) -> None:
        if str((span.attributes or {}).get("url.path", "")).startswith(_PAGES):
            return
        trace_id = span.context.trace_id
        with self._lock:
            spans = self._found.setdefault(trace_id, [])
            self._found.move_to_end(trace_id)
            if len(spans) < self._most_spans:
                spans.append(span)
            else:
                self._left_out[trace_id] = self._left_out.get(trace_id, 0) + 1
            if len(self._found) > self._most_traces:
                oldest, _ = self._found.popitem(last=False)
                self._left_out.pop(oldest, None)

    def traces(self) -> list[StoredTrace]:
        """Return the traces, the one with the latest span first."""
        with self._lock:
            return [self._stored(trace_id) for trace_id in reversed(self._found)]

    def find(self, trace_id: str) -> StoredTrace | None:
        return next((trace for trace in self.traces() if trace.trace_id == trace_id), None)

    def _stored(self, trace_id: int) -> StoredTrace:
        spans = tuple(sorted(self._found[trace_id], key=_start))
        return StoredTrace(format_trace_id(trace_id), spans, self._left_out.get(trace_id, 0))


def install(app: FastAPI, buffer: TraceBuffer, is_on: bool) -> None:
    """Serve the page, as JSON for those who accept only that, and link it from `/docs`."""
    app.description = f"{app.description}\n\n[Traces of the last requests](dev/traces)"

    @app.get(PATH, include_in_schema=False)
    async def listing(request: Request) -> Response:
        traces = buffer.traces()
        if _wants_json(request):
            return JSONResponse([_trace_as_json(trace) for trace in traces])
        return HTMLResponse(_list_page(traces, is_on))

    @app.get(PATH + "/{trace_id}", include_in_schema=False)
    async def one(request: Request, trace_id: str) -> Response:
        if (trace := buffer.find(trace_id)) is None:
            raise HTTPException(404, f"this process has no trace {trace_id}, or no longer")
        if _wants_json(request):
            return JSONResponse(_trace_as_json(trace))
        batches = [other for other in buffer.traces() if trace.trace_id in other.linked]
        return HTMLResponse(_trace_page(trace, batches))


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


# HTML


def _list_page(traces: Iterable[StoredTrace], is_on: bool) -> str:
    rows = "\n".join(map(_list_row, _without_batches(traces)))
    if not is_on:
        content = "<p>Tracing is off: OTEL_SDK_DISABLED is true.</p>"
    elif not rows:
        content = "<p>No traces yet: send a request, and load this page again.</p>"
    else:
        content = (
            '<table>\n<tr><th>Trace</th><th class="wide">Started (UTC)</th>'
            '<th class="number">Spans</th><th class="number">Time</th></tr>\n'
            f"{rows}\n</table>"
        )
    body = f"""\
<h1>Traces</h1>
<p><a href="../docs">HTTP API</a></p>
<p class="quiet">The last {TRACES} traces of this process, the newest first. Batches of messages are
linked from the traces of their messages.</p>
{content}"""
    return _PAGE.substitute(title="Traces", root="../", body=body)


def _without_batches(traces: Iterable[StoredTrace]) -> list[StoredTrace]:
    """Leave out the batches that the page of another trace names."""
    traces = list(traces)
    ids = {trace.trace_id for trace in traces if not trace.linked}
    return [trace for trace in traces if trace.linked.isdisjoint(ids)]


def _list_row(trace: StoredTrace) -> str:
    return (
        f'<tr><td><a href="traces/{trace.trace_id}">{_text(trace.spans[0].name)}</a>'
        f"{_path(trace.spans[0])}"
        f'{_badge(trace.has_error)}</td><td class="wide">{_clock(trace.started)}</td>'
        f'<td class="number">{len(trace.spans) + trace.left_out}</td>'
        f'<td class="number">{trace.milliseconds:.1f} ms</td></tr>'
    )


def _trace_page(trace: StoredTrace, batches: Iterable[StoredTrace]) -> str:
    name = _text(trace.spans[0].name)
    count = len(trace.spans)
    left_out = f", and {trace.left_out} more that were not kept" if trace.left_out else ""
    rows = "\n".join(_row(trace, depth, span) for depth, span in trace.tree())
    links = [f'<a href="{each.trace_id}">{_text(each.spans[0].name)}</a>' for each in batches]
    sentence = f'<p class="quiet">Its messages were in: {", ".join(links)}</p>' if links else ""
    body = f"""\
<h1>{name}{_badge(trace.has_error)}</h1>
<p><a href="../traces">All traces</a></p>
<p class="quiet">Trace {trace.trace_id}{_path(trace.spans[0])}, started at {_clock(trace.started)} UTC,
{trace.milliseconds:.1f} ms, {count} span{"" if count == 1 else "s"}{left_out}</p>
{rows}
{sentence}"""
    return _PAGE.substitute(title=name, root="../../", body=body)


def _row(trace: StoredTrace, depth: int, span: ReadableSpan) -> str:
    whole = max(trace.milliseconds, 1e-6)
    begin = (_start(span) - trace.started) / 1e6
    length = _milliseconds(span)
    left, width = min(100 * begin / whole, 100), min(100 * length / whole, 100)
    consumer = (span.attributes or {}).get("app.consumer")
    kind = span.kind.name.lower() if consumer is None else f"{span.kind.name.lower()} {consumer}"
    return (
        f'<div class="row{" error" if _failed(span) else ""}">'
        f'<details style="margin-left: {min(depth, 20)}rem"><summary>{_text(span.name)}'
        f' <span class="quiet">{_text(kind) if kind != "internal" else ""}</span>{_badge(_failed(span))}'
        f"</summary>{_details(span)}</details>"
        f'<div class="track"><div class="bar" style="left: {left:.2f}%; width: {width:.2f}%"></div>'
        f'</div><div class="number">{length:.1f} ms</div></div>'
    )


def _details(span: ReadableSpan) -> str:
    entries = [("span", _text(format_span_id(span.context.span_id)))]
    entries += [(name, _text(value)) for name, value in (span.attributes or {}).items()]
    for link in span.links:
        trace_id, span_id = format_trace_id(link.context.trace_id), _id(link.context.span_id)
        entries.append(("link", f'<a href="{trace_id}">{trace_id}</a> {span_id}'))
    for event in span.events:
        entries.append(("event", f"{_text(event.name)} at {_clock(event.timestamp)}"))
        entries += [(name, _text(value)) for name, value in (event.attributes or {}).items()]
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{text}</dd>' for name, text in entries)}</dl>"


def _path(span: ReadableSpan) -> str:
    """Return the path of a request where the name of its span has only the route."""
    path = str((span.attributes or {}).get("url.path", ""))
    return (
        "" if span.name.endswith(path) else f' <span class="quiet">{_text(one_line(path))}</span>'
    )


def _badge(is_error: bool) -> str:
    return ' <span class="badge">error</span>' if is_error else ""


def _text(value: object) -> str:
    return escape(printable(str(value), keep="\n"))


# JSON


def _trace_as_json(trace: StoredTrace) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "name": trace.spans[0].name,
        "started": _iso(trace.started),
        "milliseconds": trace.milliseconds,
        "left_out": trace.left_out,
        "spans": [_span_as_json(span) for _, span in trace.tree()],
    }


def _span_as_json(span: ReadableSpan) -> dict[str, Any]:
    return {
        "span_id": _id(span.context.span_id),
        "parent_id": None if span.parent is None else _id(span.parent.span_id),
        "name": span.name,
        "kind": span.kind.name.lower(),
        "started": _iso(_start(span)),
        "milliseconds": _milliseconds(span),
        "is_error": _failed(span),
        "attributes": _plain(span.attributes),
        "links": [
            {
                "trace_id": format_trace_id(link.context.trace_id),
                "span_id": _id(link.context.span_id),
                "attributes": _plain(link.attributes),
            }
            for link in span.links
        ],
        "events": [
            {
                "name": event.name,
                "time": _iso(event.timestamp),
                "attributes": _plain(event.attributes),
            }
            for event in span.events
        ],
    }


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (attributes or {}).items()
    }


# Spans


def _id(span_id: int) -> str:
    return format_span_id(span_id)


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def _end(span: ReadableSpan) -> int:
    return span.end_time or 0


def _milliseconds(span: ReadableSpan) -> float:
    return (_end(span) - _start(span)) / 1e6


def _failed(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _clock(nanoseconds: int) -> str:
    return _time(nanoseconds).strftime("%H:%M:%S.%f")[:-3]


def _iso(nanoseconds: int) -> str:
    return _time(nanoseconds).isoformat(timespec="microseconds")
