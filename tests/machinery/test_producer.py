"""Kafka's settings and security, and publishing, on a fake producer."""

import io
import ssl
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY as METRICS
from pydantic import SecretStr
from structlog.testing import capture_logs

from app import tracing
from app.config import ConfigurationError, load
from app.kafka.codec import Message, decode, header
from app.kafka.errors import BrokerUnavailable, MessageTooLarge, UnknownTopic
from app.kafka.producer import FakeProducer, Outcome, Producer
from app.kafka.publisher import DirectPublisher
from app.kafka.settings import ClientCredentials, KafkaSettings, client_options
from app.tracing import Trace
from tests.unit.samples import REGISTRY, TOPIC, meter_read

SECRET = "tr0ub4dor&3"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """No variable of the machine and no .env of the project takes part."""
    monkeypatch.chdir(tmp_path)
    for name in KafkaSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load(KafkaSettings)
    message = str(refused.value)
    assert SECRET not in message
    assert "\n" not in message
    return message


def test_the_defaults_suit_a_broker_on_this_machine() -> None:
    settings = load(KafkaSettings)

    assert settings.kafka_bootstrap_servers == "localhost:9092"
    assert settings.kafka_security_protocol == "PLAINTEXT"
    assert settings.kafka_enable_auto_commit is False
    assert settings.kafka_linger_ms == 0


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:9093")
    monkeypatch.setenv("kafka_topic_partitions", "12")

    settings = load(KafkaSettings)

    assert settings.kafka_bootstrap_servers == "a:9092,b:9093"
    assert settings.kafka_topic_partitions == 12


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "")

    assert load(KafkaSettings).kafka_sasl_password is None


def test_auto_commit_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, KAFKA_ENABLE_AUTO_COMMIT="true")

    assert "KAFKA_ENABLE_AUTO_COMMIT" in message
    assert "auto-commit would lose messages" in message


def test_auto_commit_may_be_switched_off_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_ENABLE_AUTO_COMMIT", "false")

    assert load(KafkaSettings).kafka_enable_auto_commit is False


@pytest.mark.parametrize("value", ["kafka", "kafka:port", "a:1,,b:2", "a:1, b:2", "://"])
def test_servers_without_a_port_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert "KAFKA_BOOTSTRAP_SERVERS" in refusal(monkeypatch, KAFKA_BOOTSTRAP_SERVERS=value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_MAX_MESSAGE_BYTES", "10"),
        ("KAFKA_SEND_TIMEOUT_SECONDS", "0"),
        ("KAFKA_LINGER_MS", "-1"),
        ("KAFKA_COMPRESSION", "rar"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("KAFKA_AUTO_OFFSET_RESET", "middle"),
        ("KAFKA_TOPIC_PARTITIONS", "many"),
        ("KAFKA_SESSION_TIMEOUT_SECONDS", "1"),
        ("INBOX_RETENTION_HOURS", "0"),
    ],
)
def test_a_wrong_value_is_refused_and_shown_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    message = refusal(monkeypatch, **{variable: value})

    assert message.startswith(f"wrong configuration: {variable}: ")
    assert f"it is '{value}'" in message


def test_all_wrong_variables_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, KAFKA_LINGER_MS="-1", KAFKA_COMPRESSION="rar")

    assert "KAFKA_LINGER_MS" in message
    assert "KAFKA_COMPRESSION" in message


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"]),
        ({"KAFKA_SASL_USERNAME": "u"}, ["KAFKA_SASL_PASSWORD"]),
        ({"KAFKA_SASL_PASSWORD": SECRET}, ["KAFKA_SASL_USERNAME"]),
        (
            {"KAFKA_SASL_MECHANISM": "OAUTHBEARER", "KAFKA_SASL_PASSWORD": SECRET},
            ["KAFKA_SASL_OAUTH_TOKEN_URL", "KAFKA_SASL_USERNAME"],
        ),
    ],
)
@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_incomplete_credentials_are_refused_and_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, protocol: str, given: dict[str, str], missing: list[str]
) -> None:
    message = refusal(monkeypatch, KAFKA_SECURITY_PROTOCOL=protocol, **given)

    assert f"also needs {', '.join(missing)}" in message


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_user_and_password_are_enough(monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", mechanism)
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "u")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", SECRET)

    settings = load(KafkaSettings)

    assert settings.kafka_sasl_password == SecretStr(SECRET)
    assert SECRET not in repr(settings)


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


MESSAGE = Message("a", b"k", b"v")


async def test_it_keeps_what_it_was_sent_in_order() -> None:
    producer = FakeProducer()
    messages = [Message("a", b"k", b"%d" % n) for n in range(3)]

    assert await producer.send_all(messages[:2]) == [None, None]
    await producer.send(messages[2])

    assert producer.sent == messages


async def test_it_shows_what_is_on_a_topic() -> None:
    producer = FakeProducer()
    await producer.send(MESSAGE)
    await producer.send(Message("b", None, None))

    assert producer.on("a") == [MESSAGE]


async def test_nothing_is_delivered_while_the_broker_is_away() -> None:
    producer = FakeProducer()
    producer.available = False

    with pytest.raises(BrokerUnavailable):
        await producer.send(MESSAGE)
    with pytest.raises(BrokerUnavailable):
        await producer.ping()
    assert producer.sent == []

    producer.available = True
    await producer.ping()
    await producer.send(MESSAGE)
    assert producer.sent == [MESSAGE]


async def test_a_topic_that_does_not_exist_takes_nothing() -> None:
    producer = FakeProducer(topics=["b"])

    with pytest.raises(UnknownTopic, match="the topic a does not exist"):
        await producer.send(MESSAGE)


async def test_one_bad_message_does_not_stop_other_keys() -> None:
    producer = FakeProducer(max_bytes=1000)
    large = Message("a", b"another", b"x" * 1000)

    outcomes = await producer.send_all([MESSAGE, large, MESSAGE])

    assert [type(outcome) for outcome in outcomes] == [type(None), MessageTooLarge, type(None)]
    assert producer.sent == [MESSAGE, MESSAGE]


async def test_after_a_refused_message_nothing_of_its_key_is_sent() -> None:
    producer = FakeProducer(max_bytes=1000)
    large = Message("a", b"k", b"x" * 1000)

    outcomes = await producer.send_all([MESSAGE, large, MESSAGE])

    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        MessageTooLarge,
        BrokerUnavailable,
    ]
    assert producer.sent == [MESSAGE]


async def test_a_forwarded_message_may_be_larger_than_a_new_one() -> None:
    producer = FakeProducer(max_bytes=1000)
    forwarded = Message("a", b"k", b"x" * 1000, forwarded=True)

    await producer.send(forwarded)

    assert producer.sent == [forwarded]


class RecoveringProducer(FakeProducer):
    """Away for the first `failures` calls."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.calls: list[int] = []
        self._failures = failures

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        self.calls.append(len(messages))
        self.available = len(self.calls) > self._failures
        return await super().send_all(messages)


def publisher(
    producer: Producer, deadline: float = 5.0, max_bytes: int = 1_000_000
) -> DirectPublisher:
    return DirectPublisher(producer, REGISTRY, deadline, max_bytes)


def lost() -> float:
    return METRICS.get_sample_value("kafka_events_lost_total", {"topic": TOPIC}) or 0.0


async def test_nothing_is_sent_before_the_transaction_is_committed() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    await published.publish(meter_read())

    assert producer.sent == []


async def test_after_the_commit_all_events_go_out_in_order() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    events = [meter_read(count=n) for n in range(3)]
    for event in events:
        await published.publish(event)
    await published.committed()

    assert [decode(m.topic, m.value, REGISTRY) for m in producer.sent] == events


async def test_an_event_goes_out_once() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    await published.publish(meter_read())
    await published.committed()
    await published.committed()

    assert len(producer.sent) == 1


async def test_without_events_the_producer_is_left_alone() -> None:
    producer = RecoveringProducer(failures=0)
    await publisher(producer).committed()

    assert producer.calls == []


async def test_an_event_carries_the_story_in_which_it_was_published() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    with tracing.bound(Trace("story", "cause")):
        await published.publish(meter_read())
    await published.committed()

    assert header(producer.sent[0].headers, "correlation-id") == "story"
    assert header(producer.sent[0].headers, "causation-id") == "cause"


async def test_what_may_pass_later_is_sent_again() -> None:
    producer = RecoveringProducer(failures=2)
    published = publisher(producer)
    before = lost()
    await published.publish(meter_read())
    await published.committed()

    assert len(producer.sent) == 1
    assert producer.calls == [1, 1, 1]
    assert lost() == before


class LosesTheFirst(FakeProducer):
    """Of its first call it delivers all but the first message."""

    calls = 0

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        self.calls += 1
        if self.calls > 1:
            return await super().send_all(messages)
        self.sent += messages[1:]
        return [BrokerUnavailable("away"), *[None] * len(messages[1:])]


async def test_other_keys_than_that_of_what_failed_are_not_sent_again() -> None:
    producer = LosesTheFirst()
    published = publisher(producer)
    for meter in ("m-1", "m-2", "m-3"):
        await published.publish(meter_read(meter_id=meter))
    await published.committed()

    assert [m.key for m in producer.sent] == [b"m-2", b"m-3", b"m-1"]


async def test_what_follows_with_the_key_of_what_failed_is_sent_again_after_it() -> None:
    producer = LosesTheFirst()
    published = publisher(producer)
    events = [meter_read(count=count) for count in range(3)]
    for event in events:
        await published.publish(event)
    await published.committed()

    sent_again = producer.sent[2:]
    assert [decode(m.topic, m.value, REGISTRY) for m in sent_again] == events


async def test_after_its_deadline_an_event_is_lost_counted_and_logged() -> None:
    producer = FakeProducer()
    producer.available = False
    published = publisher(producer, deadline=0.15)
    before = lost()
    await published.publish(meter_read("m-9"))
    with capture_logs() as logs:
        await published.committed()

    assert lost() == before + 1
    (entry,) = [entry for entry in logs if entry["event"] == "event not published"]
    assert entry["log_level"] == "error"
    assert (entry["topic"], entry["key"]) == (TOPIC, "m-9")
    assert '"meter_id":"m-9"' in entry["value"]
    assert entry["error"] == "BrokerUnavailable: the fake broker is away"


async def test_what_can_never_pass_is_not_tried_again() -> None:
    producer = FakeProducer(topics=[])
    published = publisher(producer, deadline=60)
    before = lost()
    await published.publish(meter_read())
    await published.committed()

    assert lost() == before + 1


async def test_an_event_that_is_too_large_fails_the_transaction() -> None:
    producer = FakeProducer()
    published = publisher(producer, max_bytes=2000)

    with pytest.raises(MessageTooLarge, match="KAFKA_MAX_MESSAGE_BYTES=2000"):
        await published.publish(meter_read(note="x" * 2000))
    await published.committed()
    assert producer.sent == []
