"""Structured logs: readable on a terminal, JSON lines otherwise."""

import logging
import os
import sys
from collections.abc import Mapping
from io import StringIO
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal, TextIO

import structlog
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id, get_current_span
from structlog.stdlib import ProcessorFormatter, filter_by_level
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from app.platform.terminal import printable

LogFormat = Literal["auto", "pretty", "json"]

# These log each of their own retries and requests; the service logs state changes, once each.
_LIBRARY_LEVELS = {
    "aiokafka": logging.CRITICAL,
    "alembic": logging.WARNING,
    # A malformed tracestate is the sender's fault, and as if it were missing.
    "opentelemetry.trace": logging.ERROR,
    "app.platform.database.pool.CountingPool": logging.WARNING,  # the messages are SQLAlchemy's
    "uvicorn.access": logging.WARNING,
}


_FILE_BYTES = 10_000_000


def configure(
    level: str = "INFO",
    log_format: LogFormat = "auto",
    file: Path | None = None,
    resource: Mapping[str, str] | None = None,
) -> None:
    """Write the logs of the service and of its libraries to standard error, in one format.

    JSON lines have the fields of `resource`, too. They are appended to `file` as JSON, without those.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_span,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        # The filter comes first, so that a line that nobody sees costs nothing.
        processors=[filter_by_level, *shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
    renderers = _pretty_renderers() if pretty else _json_renderers(resource or {})
    handlers: list[tuple[logging.Handler, list[Processor]]] = [(logging.StreamHandler(), renderers)]
    if file is not None:
        rotating = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8")
        handlers.append((rotating, _json_renderers({})))
    for handler, rendering in handlers:
        remove_meta = ProcessorFormatter.remove_processors_meta
        formatter = ProcessorFormatter(
            foreign_pre_chain=shared, processors=[remove_meta, *rendering]
        )
        handler.setFormatter(formatter)
    _replace_handlers([handler for handler, _ in handlers])
    logging.getLogger().setLevel(level)
    for name, library_level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(library_level)


def _add_span(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Add the ids of the current span, which may be that of a caller."""
    event.update(ids_of(get_current_span().get_span_context()))
    return event


def ids_of(span: SpanContext) -> dict[str, str]:
    """Return the fields that lead to `span`; none if it is of no trace."""
    if not span.is_valid:
        return {}
    return {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}


def _replace_handlers(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    for replaced in root.handlers:
        if isinstance(replaced, RotatingFileHandler):
            replaced.close()
    root.handlers[:] = handlers


# Both traceback renderers show local variables by default, and so would show passwords.
def _pretty_renderers() -> list[Processor]:
    return [
        _escape_control_characters,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            exception_formatter=_plain_traceback,
        ),
    ]


def _json_renderers(resource: Mapping[str, str]) -> list[Processor]:
    def add_resource(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        return {**event, **resource}

    return [
        add_resource,
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]


def _escape_control_characters(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Escape values, so that they can neither control the terminal nor imitate another log line."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value, keep="\n" if name in ("exception", "stack") else "")
    return event


def _plain_traceback(stream: TextIO, error: ExcInfo) -> None:
    written = StringIO()
    structlog.dev.plain_traceback(written, error)
    stream.write(printable(written.getvalue(), keep="\n\t"))
