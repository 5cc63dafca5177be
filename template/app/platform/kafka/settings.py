"""Kafka's settings, and the options of its clients."""

import asyncio
import json
import re
import ssl
import time
import urllib.parse
import urllib.request
from typing import Any, Literal

from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.helpers import create_ssl_context
from pydantic import Field, SecretStr, field_validator, model_validator

from app import SERVICE_NAME
from app.platform.config import ConfigurationError, EnvSettings

SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]


class KafkaSettings(EnvSettings):
    """Settings of the producer and the consumers. Times are in seconds, sizes in bytes."""

    kafka_bootstrap_servers: str = "localhost:9092"
    kafka_client_id: str = SERVICE_NAME

    kafka_security_protocol: SecurityProtocol = "PLAINTEXT"
    kafka_sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_sasl_oauth_token_url: str | None = None
    kafka_sasl_oauth_scope: str | None = None
    kafka_ssl_cafile: str | None = None
    kafka_ssl_certfile: str | None = None
    kafka_ssl_keyfile: str | None = None
    kafka_ssl_password: SecretStr | None = None

    kafka_compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"
    kafka_ce_type_prefix: str = Field("", pattern=r"^([A-Za-z0-9-]+\.)*$")
    kafka_linger_ms: int = Field(0, ge=0)
    kafka_max_message_bytes: int = Field(1_000_000, ge=1_000)
    kafka_send_timeout_seconds: float = Field(10.0, gt=0)

    kafka_group_id: str = Field(SERVICE_NAME, min_length=1, max_length=150)
    kafka_auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    kafka_enable_auto_commit: bool = False
    kafka_session_timeout_seconds: float = Field(15.0, ge=6)
    kafka_drain_timeout_seconds: float = Field(15.0, gt=0)
    kafka_stall_timeout_seconds: float = Field(300.0, gt=0)

    kafka_topic_partitions: int = Field(3, ge=1)
    kafka_topic_replication_factor: int = Field(1, ge=1)
    kafka_topic_retention_hours: int = Field(7 * 24, ge=1)
    kafka_dlq_retention_hours: int = Field(30 * 24, ge=1)
    inbox_retention_hours: int = Field(32 * 24, ge=1)

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        if not all(_is_address(part) for part in value.split(",")):
            raise ValueError("use host:port, separated by commas, with ports from 1 to 65535")
        return value

    @field_validator("kafka_enable_auto_commit")
    @classmethod
    def _commits_are_explicit(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "auto-commit would lose messages, because offsets may only be committed after the"
                " effects: leave it false"
            )
        return value

    @model_validator(mode="after")
    def _credentials_are_complete(self) -> "KafkaSettings":
        if not self.kafka_security_protocol.startswith("SASL"):
            return self
        if self.kafka_sasl_mechanism == "OAUTHBEARER":
            needed = {
                "KAFKA_SASL_OAUTH_TOKEN_URL": self.kafka_sasl_oauth_token_url,
                "KAFKA_SASL_USERNAME": self.kafka_sasl_username,
                "KAFKA_SASL_PASSWORD": self.kafka_sasl_password,
            }
        else:
            needed = {
                "KAFKA_SASL_USERNAME": self.kafka_sasl_username,
                "KAFKA_SASL_PASSWORD": self.kafka_sasl_password,
            }
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} with"
                f" {self.kafka_sasl_mechanism} also needs {', '.join(missing)}"
            )
        return self


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"[^,\s]+:([0-9]{1,5})", text)
    return found is not None and 1 <= int(found[1]) <= 65535


REASON_TIMEOUT_SECONDS = 5.0
METADATA_MAX_AGE_SECONDS = 10.0

_REFUSED = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options that aiokafka's producer, consumer and admin client share.

    Raises ConfigurationError if a certificate file cannot be used.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": settings.kafka_client_id,
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        options |= _sasl(settings)
    return options


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options of every client that reads, in a group or without one."""
    return {
        **client_options(settings),
        "enable_auto_commit": False,
        # Transactions of other producers count once they are committed.
        "isolation_level": "read_committed",
        # The time within which new partitions, and topics that were created again, are noticed.
        "metadata_max_age_ms": int(METADATA_MAX_AGE_SECONDS * 1000),
    }


async def reason_for(error: Exception, settings: KafkaSettings) -> str:
    """Return why a client of `settings` could not start, and which settings to check.

    aiokafka raises a generic error and only logs the reason, so each broker is asked again.
    """
    if not isinstance(error, kafka_errors.KafkaConnectionError):
        return f"{type(error).__name__}: {error}"
    options = client_options(settings)
    hosts = sorted(collect_hosts(options.pop("bootstrap_servers")))
    return "; ".join(
        await asyncio.gather(*(_refusal(host, port, options, settings) for host, port, _ in hosts))
    )


async def _refusal(host: str, port: int, options: dict[str, Any], settings: KafkaSettings) -> str:
    try:
        async with asyncio.timeout(REASON_TIMEOUT_SECONDS):
            connection = await create_conn(host, port, **options)
    except Exception as cause:  # any error is the reason
        return f"{host}:{port}: {_explain(cause, settings)}"
    connection.close()
    return f"{host}:{port}: answers again"


def _explain(cause: Exception, settings: KafkaSettings) -> str:
    if isinstance(cause, _REFUSED):
        return (
            f"authentication failed for {settings.kafka_sasl_username!r} with"
            f" {settings.kafka_sasl_mechanism}: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD"
            " and KAFKA_SASL_MECHANISM"
        )
    if isinstance(cause, ssl.SSLError):
        return f"no TLS connection: {cause}: check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_CAFILE"
    if isinstance(cause, TimeoutError):
        return "no answer"
    return str(cause) or type(cause).__name__


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        return {
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": ClientCredentials(settings),
        }
    password = settings.kafka_sasl_password
    return {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
    }


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    password = settings.kafka_ssl_password
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=settings.kafka_ssl_cafile,
            certfile=settings.kafka_ssl_certfile,
            keyfile=settings.kafka_ssl_keyfile,
            password=password.get_secret_value() if password else None,
        )
        return context
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            "wrong configuration: KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE or KAFKA_SSL_KEYFILE"
            f" cannot be used: {error}"
        ) from error


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is not typed
    """A provider of OAuth 2.0 tokens by client credentials (RFC 6749, section 4.4), with a cache."""

    REQUEST_TIMEOUT_SECONDS = 10
    RENEW_BEFORE_SECONDS = 60

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._token = ""
        self._expires = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Return a token that does not expire soon. Raises OSError or ValueError if none is issued."""
        async with self._lock:
            if time.monotonic() >= self._expires - self.RENEW_BEFORE_SECONDS:
                self._token, lifetime = await asyncio.to_thread(self._request)
                self._expires = time.monotonic() + lifetime
            return self._token

    def _request(self) -> tuple[str, float]:
        settings = self._settings
        password = settings.kafka_sasl_password
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.kafka_sasl_username or "",
            "client_secret": password.get_secret_value() if password else "",
        }
        if settings.kafka_sasl_oauth_scope:
            form["scope"] = settings.kafka_sasl_oauth_scope
        request = urllib.request.Request(
            settings.kafka_sasl_oauth_token_url or "", data=urllib.parse.urlencode(form).encode()
        )
        with urllib.request.urlopen(request, timeout=self.REQUEST_TIMEOUT_SECONDS) as response:
            answer = json.load(response)
        if not isinstance(answer, dict) or "access_token" not in answer:
            raise ValueError("the token endpoint returned no access_token")
        return str(answer["access_token"]), float(answer.get("expires_in") or 300)
