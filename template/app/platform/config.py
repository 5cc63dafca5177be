"""Settings come from the environment and `.env`. Each module keeps its own class beside its reader."""

from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app import SERVICE_NAME


class ConfigurationError(Exception):
    """A setting is missing or wrong. The message names the variable and never holds a secret."""


class EnvSettings(BaseSettings):
    """Base of every settings class: names are environment variables, in either case."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )


class Settings(EnvSettings):
    """Settings of the service as a whole."""

    service_name: str = Field(SERVICE_NAME, pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "pretty", "json"] = "auto"
    listen_host: str = Field("127.0.0.1", min_length=1)
    listen_port: int | None = Field(None, ge=1, le=65535)

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_either_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


class HttpSettings(EnvSettings):
    """Limits of requests. Times are in seconds, sizes in bytes."""

    http_max_body_bytes: int = Field(1_000_000, ge=1_000)
    http_body_timeout_seconds: float = Field(30.0, gt=0, allow_inf_nan=False)
    http_header_timeout_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    http_keep_alive_timeout_seconds: int = Field(5, ge=1)


S = TypeVar("S", bound=EnvSettings)


def load(settings: type[S], **given: Any) -> S:
    """Read `settings` from the environment; what is given wins.

    Raises ConfigurationError with one line for each wrong variable.
    """
    try:
        return settings(**given)
    except ValidationError as error:
        raise ConfigurationError(_explain(settings, error)) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"wrong configuration: .env is not UTF-8: {error}") from None


def _explain(settings: type[EnvSettings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""  # the message itself names several
        field = settings.model_fields.get(name)
        given = problem.get("input")
        secret = field is None or SecretStr in (field.annotation, *_arguments(field.annotation))
        shown = "" if secret or problem["type"] == "missing" else f" (it is {given!r})"
        said = problem["msg"].removeprefix("Value error, ")  # pydantic's, before our own words
        lines.append(f"{name.upper()}: {said}{shown}" if name else said)
    return "wrong configuration: " + "; ".join(lines)


def _arguments(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__args__", ())
