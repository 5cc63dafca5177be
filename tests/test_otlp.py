"""The receiver of traces understands OTLP, and refuses all else."""

import gzip
import urllib.error
import urllib.request

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests import otlp

TRACE, PARENT, CHILD = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


def request() -> ExportTraceServiceRequest:
    sent = ExportTraceServiceRequest()
    of_process = sent.resource_spans.add()
    for key in ("service.name", "service.instance.id"):
        value = AnyValue(string_value=f"{key} of shop")
        of_process.resource.attributes.append(KeyValue(key=key, value=value))
    span = of_process.scope_spans.add().spans.add(
        name="process shop.order.created",
        kind=Span.SPAN_KIND_CONSUMER,
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(CHILD),
        parent_span_id=bytes.fromhex(PARENT),
        trace_state="vendor=value",
        status=Status(code=Status.STATUS_CODE_ERROR),
    )
    span.attributes.append(KeyValue(key="messaging.kafka.offset", value=AnyValue(int_value=7)))
    span.links.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(PARENT))
    return sent


def post(address: str, body: bytes, path: str = otlp.PATH, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = urllib.request.Request(address + path, body, {"Content-Type": otlp.CONTENT_TYPE} | named)
    try:
        with urllib.request.urlopen(sent, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("compressed", [False, True])
def test_a_span_is_received_with_its_parent_and_links(compressed: bool) -> None:
    body = request().SerializeToString()
    encoding = {"Content_Encoding": "gzip"} if compressed else {}
    with otlp.receiving() as receiver:
        assert (
            post(receiver.address, gzip.compress(body) if compressed else body, **encoding) == 200
        )
        (span,) = receiver.trace(TRACE)
    assert (span.service, span.kind, span.failed) == ("service.name of shop", "CONSUMER", True)
    assert (span.span_id, span.parent_id, span.links) == (CHILD, PARENT, ((TRACE, PARENT),))
    assert (span.tracestate, span.attributes) == ("vendor=value", {"messaging.kafka.offset": 7})
    assert receiver.refused == []


def test_what_is_not_otlp_is_refused_and_remembered() -> None:
    with otlp.receiving() as receiver:
        assert post(receiver.address, b"{}") == 400
        assert post(receiver.address, b"", path="/v1/metrics") == 400
        assert post(receiver.address, b"", Content_Type="application/json") == 400
    assert (len(receiver.refused), receiver.spans) == (3, [])


def test_a_span_whose_parent_never_came_is_found() -> None:
    (span,) = otlp.spans_of(request())
    assert otlp.missing_parents([span]) == [span]
    assert otlp.missing_parents([span], caller=PARENT) == []
