"""Settings, read from the environment and from `.env`. A component defines its own beside its code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app import SERVICE_NAME

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_WRONG = "wrong configuration: "
_HTTP_URL = r"^https?://\S+$"


class ConfigurationError(Exception):
    """A missing or wrong setting. The message names the variable and never contains a secret."""


class EnvSettings(BaseSettings):
    """Base class of settings. A field is read from the environment variable of its name."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )


class Settings(EnvSettings):
    """Settings of the service as a whole."""

    service_name: str = Field(SERVICE_NAME, pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80)
    log_level: LogLevel = "INFO"
    log_format: Literal["auto", "pretty", "json"] = "auto"
    listen_host: str = Field("127.0.0.1", min_length=1)
    listen_port: int | None = Field(None, ge=1, le=65535)
    dev_kafka_of: Path | None = None

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        known = isinstance(value, str) and value.upper() in get_args(LogLevel)
        return str(value).upper() if known else value


class HttpSettings(EnvSettings):
    """Limits on requests, in seconds and bytes."""

    http_max_body_bytes: int = Field(1_000_000, ge=1_000)
    http_body_timeout_seconds: float = Field(30.0, gt=0, allow_inf_nan=False)
    http_header_timeout_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    http_keep_alive_timeout_seconds: int = Field(5, ge=1)


class TelemetrySettings(EnvSettings):
    """OpenTelemetry's standard variables: those that switch tracing on, and the most used others.

    Its SDK reads them, and all others of its own, from the environment.
    """

    otel_sdk_disabled: bool = False
    otel_traces_exporter: str | None = None
    otel_exporter_otlp_endpoint: str | None = Field(None, pattern=_HTTP_URL)
    otel_exporter_otlp_traces_endpoint: str | None = Field(None, pattern=_HTTP_URL)
    otel_exporter_otlp_headers: SecretStr | None = None
    otel_traces_sampler: str = "parentbased_always_on"
    otel_traces_sampler_arg: str | None = None
    otel_service_name: str | None = None
    otel_resource_attributes: str | None = None

    @property
    def exporters(self) -> list[str]:
        """The names of the exporters that are asked for; tracing is off without any."""
        if self.otel_sdk_disabled:
            return []
        endpoint = self.otel_exporter_otlp_traces_endpoint or self.otel_exporter_otlp_endpoint
        names = self.otel_traces_exporter or ("otlp" if endpoint else "none")
        return [name for part in names.split(",") if (name := part.strip()) not in ("", "none")]


S = TypeVar("S", bound=EnvSettings)


def load(settings: type[S], **given: Any) -> S:
    """Read `settings` from the environment; `given` values take precedence.

    Raises ConfigurationError, which names each wrong variable.
    """
    try:
        return settings(**given)
    except ValidationError as error:
        raise ConfigurationError(_error_message(settings, error)) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{_WRONG}.env is not UTF-8: {error}") from None


def check(kinds: Iterable[type[EnvSettings]]) -> None:
    """Raise ConfigurationError with all that is wrong in several settings, to be mended at once."""
    wrong = []
    for kind in kinds:
        try:
            load(kind)
        except ConfigurationError as error:
            wrong.append(str(error).removeprefix(_WRONG))
    if wrong:
        raise ConfigurationError(_WRONG + "; ".join(dict.fromkeys(wrong))) from None


def _error_message(settings: type[EnvSettings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        # A problem of several variables has no location; its message names them.
        name = str(problem["loc"][0]) if problem["loc"] else ""
        field = settings.model_fields.get(name)
        secret = field is None or SecretStr in (field.annotation, *_arguments(field.annotation))
        value = problem.get("input")
        shown = "" if secret or problem["type"] == "missing" else f" (it is {value!r})"
        message = problem["msg"].removeprefix("Value error, ")  # added by pydantic
        lines.append(f"{name.upper()}: {message}{shown}" if name else message)
    return _WRONG + "; ".join(lines)


def _arguments(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__args__", ())
