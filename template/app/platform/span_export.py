"""OpenTelemetry's SDK: resource, sampler and exporters, as its variables set them.

Imported by `telemetry`, and only while tracing is on.
"""

import logging
import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from uuid import uuid4

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanKind,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from app.platform.config import ConfigurationError

_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_EXPORTERS_LOGGER = "opentelemetry.exporter"

log = structlog.get_logger(__name__)


def build_provider(
    service_name: str,
    version: str,
    exporters: Sequence[str],
    processors: Sequence[SpanProcessor] = (),
) -> TracerProvider:
    """Build the provider of a process. Raises ConfigurationError for an exporter that is not there."""
    provider = TracerProvider(resource=_resource(service_name, version), shutdown_on_exit=False)
    provider.sampler = LinkedSampler(provider.sampler)
    for processor in processors:
        provider.add_span_processor(processor)
    for name in exporters:
        provider.add_span_processor(_processor(name))
    return provider


class LinkedSampler(Sampler):
    """A sampler that treats a root with links as a child of the first that is sampled.

    A batch of sampled messages is a root of its own, which the spans of the messages link to: sampled
    by itself, it would be missing in most of them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if links and not get_current_span(parent_context).get_span_context().is_valid:
            sampled = (link.context for link in links if link.context.trace_flags.sampled)
            if (first := next(sampled, None)) is not None:
                parent_context = set_span_in_context(NonRecordingSpan(first), parent_context)
                trace_id = first.trace_id
        return self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"LinkedSampler({self._sampler.get_description()})"


class ReportedExporter(SpanExporter):
    """An exporter that logs when it begins to fail, and when it succeeds again.

    Those of OpenTelemetry log each attempt at each batch.
    """

    def __init__(self, exporter: SpanExporter, name: str) -> None:
        self._exporter, self._name = exporter, name
        self._lost = 0
        self._complaints = _Complaints()
        logger = logging.getLogger(_EXPORTERS_LOGGER)
        logger.addHandler(self._complaints)
        logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._complaints.first = None
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                reason = self._complaints.first
                log.warning("spans not sent", exporter=self._name, reason=reason)
            self._lost += len(spans)
        elif self._lost:
            log.info("spans sent again", exporter=self._name, lost=self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Complaints(logging.Handler):
    """The first message of a library about a batch, which has the reason."""

    first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.first = self.first or record.getMessage()


def _resource(service_name: str, version: str) -> Resource:
    ours = {
        "service.name": service_name,
        "service.version": version,
        "service.instance.id": str(uuid4()),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _processor(name: str) -> SpanProcessor:
    entry = name if name != "otlp" else _otlp()
    found = next(iter(entry_points(group=_GROUP, name=entry)), None)
    if found is None:
        known = ", ".join(sorted({"otlp", *(each.name for each in entry_points(group=_GROUP))}))
        raise ConfigurationError(
            f"wrong configuration: OTEL_TRACES_EXPORTER: no exporter {entry} is installed;"
            f" there are: {known}"
        )
    try:
        return BatchSpanProcessor(ReportedExporter(found.load()(), entry))
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"wrong configuration: OTEL_EXPORTER_* or OTEL_BSP_*: {error}"
        ) from error


def _otlp() -> str:
    general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general).strip()
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(
            f"wrong configuration: OTEL_EXPORTER_OTLP_PROTOCOL: {protocol} is none of"
            f" {', '.join(_PROTOCOLS)}"
        )
    return _PROTOCOLS[protocol]
