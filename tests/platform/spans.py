"""The spans that a test makes: the fixture `spans`, and what tests ask of a span."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.platform.span_export import build_provider


class Spans:
    """The spans that have ended, in that order."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._exporter)
        self.provider = build_provider("shop", "1.2.3", [], [processor])
        self.tracer = self.provider.get_tracer("app")

    def finished(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def names(self) -> list[str]:
        return [span.name for span in self.finished()]

    def named(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (found,) = [span for span in self.finished() if span.name == name]
        return found


def place(span: ReadableSpan) -> tuple[int, int]:
    """The trace of a span, and its parent."""
    assert span.context is not None
    return span.context.trace_id, span.parent.span_id if span.parent else 0


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number
