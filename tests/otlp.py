"""A receiver of traces by OTLP over HTTP, on the loopback interface, and the spans that it received."""

import gzip
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATH = "/v1/traces"
CONTENT_TYPE = "application/x-protobuf"


@dataclass(frozen=True)
class Span:
    """A received span. `process` is its `service.instance.id`."""

    service: str
    process: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[tuple[str, str], ...]
    """The trace and the span of each link."""
    tracestate: str
    failed: bool
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


class Receiver:
    """The spans of any number of processes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.refused: list[str] = []
        self._spans: list[Span] = []

    def settings(self) -> dict[str, str]:
        """The variables with which a process sends its spans here, soon after they have ended."""
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.address,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    @property
    def spans(self) -> list[Span]:
        return self._spans.copy()

    def trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def take(self, path: str, content_type: str | None, body: bytes) -> str:
        """Keep the spans of a request; return the reason if it is refused."""
        try:
            if path != PATH or content_type != CONTENT_TYPE:
                raise ValueError(f"{path} with {content_type}, not {PATH} with {CONTENT_TYPE}")
            request = ExportTraceServiceRequest.FromString(body)
        except (DecodeError, ValueError) as error:
            self.refused.append(str(error))
            return str(error)
        self._spans += spans_of(request)
        return ""


def missing_parents(spans: Iterable[Span], caller: str = "") -> list[Span]:
    """List the spans whose parent is neither among them nor the span of the `caller`."""
    spans = list(spans)
    known = {span.span_id for span in spans} | {caller, ""}
    return [span for span in spans if span.parent_id not in known]


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        _span(span, _values(of_process.resource.attributes))
        for of_process in request.resource_spans
        for of_library in of_process.scope_spans
        for span in of_library.spans
    ]


def _span(span: trace_pb2.Span, resource: Mapping[str, Any]) -> Span:
    return Span(
        service=resource["service.name"],
        process=resource["service.instance.id"],
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        tracestate=span.trace_state,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
        resource=resource,
    )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            refusal = receiver.take(self.path, self.headers.get("Content-Type"), body)
            answer = b"" if refusal else ExportTraceServiceResponse().SerializeToString()
            self.send_response(400 if refusal else 200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            """Leave the output of the tests as it is."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        serving = threading.Thread(target=server.serve_forever, name="otlp-receiver")
        serving.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            serving.join()
