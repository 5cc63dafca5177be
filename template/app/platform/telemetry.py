"""Tracing of a process: on if OpenTelemetry's standard variables ask for it, off at its end.

OpenTelemetry's SDK is imported while tracing is on, and not otherwise.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from opentelemetry import trace
from pydantic_settings import DotEnvSettingsSource

from app.platform import tracing
from app.platform.config import ConfigurationError, Settings, TelemetrySettings, load
from app.platform.service import installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = structlog.get_logger(__name__)

# The longest wait at the end of a process for a collector that does not answer.
FLUSH_SECONDS = 5.0


def tracer_provider(
    service_name: str, settings: TelemetrySettings, processors: "Sequence[SpanProcessor]" = ()
) -> "TracerProvider | None":
    """Return the provider that `OTEL_*` and `processors` ask for, or None if they ask for none.

    Raises ConfigurationError if the SDK or an exporter is missing, or a variable is wrong.
    """
    if settings.otel_sdk_disabled or not (settings.exporters or processors):
        return None
    _export_env_file()
    try:
        from app.platform.span_export import build_provider
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"tracing needs {error.name}, which is not installed: install the extra `telemetry`"
            " (uv sync --extra telemetry), or set OTEL_SDK_DISABLED=true"
        ) from error
    version = installed_version() or "unknown"
    return build_provider(service_name, version, settings.exporters, processors)


@contextmanager
def exporting(provider: "TracerProvider | None") -> Iterator[None]:
    """Trace with `provider` during the block, and send the rest of its spans at the end."""
    if provider is None:
        yield
        return
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)  # for libraries; it can be set once
    try:
        with tracing.recording(provider.get_tracer("app")):
            yield
    finally:
        _shut_down(provider)


@contextmanager
def for_command() -> Iterator[None]:
    """Trace a command during the block, if `OTEL_*` ask for it. Raises ConfigurationError."""
    service_name = load(Settings).service_name
    with exporting(tracer_provider(service_name, load(TelemetrySettings))):
        yield


def _export_env_file() -> None:
    """Let the SDK, which reads the environment, see the variables of `.env`, too."""
    for name, value in DotEnvSettingsSource(TelemetrySettings).env_vars.items():
        if name.startswith("otel_") and value:
            os.environ.setdefault(name.upper(), value)


def _shut_down(provider: "TracerProvider") -> None:
    # A thread of its own, because an exporter may wait longer than a process has time to end.
    ending = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
    ending.start()
    ending.join(FLUSH_SECONDS)
    if ending.is_alive():
        log.warning("last spans not sent", seconds=FLUSH_SECONDS)
