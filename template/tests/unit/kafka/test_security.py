import io
import ssl
import urllib.request
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import ConfigurationError
from app.kafka.settings import ClientCredentials, KafkaSettings, client_options


def settings(**values: Any) -> KafkaSettings:
    return KafkaSettings(**{"kafka_client_id": "shop", "_env_file": None} | values)


SASL = {"kafka_sasl_username": "u", "kafka_sasl_password": SecretStr("p")}
OAUTH = SASL | {
    "kafka_security_protocol": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_sasl_oauth_token_url": "https://login.example/token",
    "kafka_sasl_oauth_scope": "kafka",
}


def test_plain_text_needs_addresses_only() -> None:
    assert client_options(settings(kafka_bootstrap_servers="a:1,b:2")) == {
        "bootstrap_servers": "a:1,b:2",
        "client_id": "shop",
        "security_protocol": "PLAINTEXT",
    }


def test_sasl_carries_the_credentials() -> None:
    options = client_options(settings(kafka_security_protocol="SASL_PLAINTEXT", **SASL))

    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert "ssl_context" not in options


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_checks_the_certificate_and_the_name_of_the_broker(protocol: str) -> None:
    context = client_options(settings(kafka_security_protocol=protocol, **SASL))["ssl_context"]

    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("name", ["kafka_ssl_cafile", "kafka_ssl_certfile"])
def test_a_certificate_file_that_is_not_there_is_a_wrong_configuration(name: str) -> None:
    wrong = settings(kafka_security_protocol="SSL", **{name: "/nowhere/file.pem"})

    with pytest.raises(ConfigurationError, match="KAFKA_SSL_CAFILE"):
        client_options(wrong)


def test_oauth_carries_a_token_provider() -> None:
    options = client_options(settings(**OAUTH))

    assert options["sasl_mechanism"] == "OAUTHBEARER"
    assert isinstance(options["sasl_oauth_token_provider"], ClientCredentials)


class TokenEndpoint:
    """Answers in turn, and keeps the requests."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[urllib.request.Request] = []

    def __call__(self, request: urllib.request.Request, timeout: float) -> io.BytesIO:
        self.requests.append(request)
        return io.BytesIO(self.answers.pop(0))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> TokenEndpoint:
    endpoint = TokenEndpoint()
    monkeypatch.setattr(urllib.request, "urlopen", endpoint)
    return endpoint


async def test_a_token_is_asked_for_with_the_client_credentials(endpoint: TokenEndpoint) -> None:
    endpoint.answers = [b'{"access_token": "t1", "expires_in": 3600}']

    assert await ClientCredentials(settings(**OAUTH)).token() == "t1"
    (request,) = endpoint.requests
    assert request.full_url == "https://login.example/token"
    assert request.data == (
        b"grant_type=client_credentials&client_id=u&client_secret=p&scope=kafka"
    )


async def test_a_token_is_kept_while_it_is_good(endpoint: TokenEndpoint) -> None:
    endpoint.answers = [b'{"access_token": "t1", "expires_in": 3600}']
    provider = ClientCredentials(settings(**OAUTH))

    assert [await provider.token(), await provider.token()] == ["t1", "t1"]


async def test_a_token_that_is_nearly_over_is_renewed(endpoint: TokenEndpoint) -> None:
    endpoint.answers = [
        b'{"access_token": "t1", "expires_in": 30}',
        b'{"access_token": "t2", "expires_in": 3600}',
    ]
    provider = ClientCredentials(settings(**OAUTH))

    assert [await provider.token(), await provider.token()] == ["t1", "t2"]


@pytest.mark.parametrize(
    "answer", [b'{"access_token": "t"}', b'{"access_token": "t", "expires_in": null}']
)
async def test_a_token_without_a_lifetime_is_taken(endpoint: TokenEndpoint, answer: bytes) -> None:
    endpoint.answers = [answer]

    assert await ClientCredentials(settings(**OAUTH)).token() == "t"


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>"])
async def test_an_answer_without_a_token_is_an_error(
    endpoint: TokenEndpoint, answer: bytes
) -> None:
    endpoint.answers = [answer]

    with pytest.raises(ValueError):  # noqa: PT011  (the parser's own message differs)
        await ClientCredentials(settings(**OAUTH)).token()
