"""Connection options for every Kafka client of the service: addresses, TLS, SASL."""

import asyncio
import json
import ssl
import time
import urllib.parse
import urllib.request
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.helpers import create_ssl_context

from app.config import ConfigurationError
from app.kafka.settings import KafkaSettings

REASON_TIMEOUT_SECONDS = 5.0

_REFUSED = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and admin client have in common.

    Raises ConfigurationError when a certificate file cannot be used.
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


async def reason_for(error: Exception, settings: KafkaSettings) -> str:
    """Why a client of `settings` could not start, and which settings to look at.

    When no broker lets it in, aiokafka raises only that, and keeps the reason to its own log.
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
    except Exception as cause:  # whatever it is, it is the answer
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
    """OAuth 2.0 client credentials (RFC 6749, section 4.4): a token, kept until it is nearly over."""

    REQUEST_TIMEOUT_SECONDS = 10
    RENEW_BEFORE_SECONDS = 60

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._token = ""
        self._expires = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """A token that is valid for a while. Raises OSError or ValueError when none is issued."""
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
            raise ValueError("the token endpoint gave no access_token")
        return str(answer["access_token"]), float(answer.get("expires_in") or 300)
