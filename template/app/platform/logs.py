"""Structured logs: readable on a terminal, JSON lines otherwise, one correlation id a story."""

import logging
import sys
from io import StringIO
from typing import Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from app.platform.terminal import printable

LogFormat = Literal["auto", "pretty", "json"]

# Clients that log each retry of their own: the service reports the state, once, in its own words.
_QUIET = {"aiokafka": logging.CRITICAL, "uvicorn.access": logging.WARNING}


def configure(level: str = "INFO", log_format: LogFormat = "auto") -> None:
    """Send the logs of the service and of its libraries to standard error in one format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(pretty),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)


def _rendering(pretty: bool) -> list[Processor]:
    # Both traceback renderers show local variables unless told not to: passwords would be in there.
    if pretty:
        return [
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_plain_traceback
            ),
        ]
    return [
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]


def _escape(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Take from what others wrote the means to steer the terminal, or to look like another line."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value, keep="\n" if name in ("exception", "stack") else "")
    return event


def _plain_traceback(stream: TextIO, error: ExcInfo) -> None:
    written = StringIO()
    structlog.dev.plain_traceback(written, error)
    stream.write(printable(written.getvalue(), keep="\n\t"))
