"""Kafka's settings and security; how a send ends; publishing, on a fake producer."""

import asyncio
import io
import ssl
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka import errors as kafka_errors
from prometheus_client import REGISTRY as METRICS
from pydantic import SecretStr
from samples import REGISTRY, TOPIC, MeterRead, meter_read
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from app.platform import tracing
from app.platform.config import ConfigurationError, load
from app.platform.database.commit_outcome import CommitTracker
from app.platform.dev.servers import MockBroker
from app.platform.events.event import EventRegistry, EventType
from app.platform.health import Unhealthy
from app.platform.kafka import connection, refusals
from app.platform.kafka import producer as producing
from app.platform.kafka.codec import Message, decode, header
from app.platform.kafka.deadline import Deadline
from app.platform.kafka.errors import (
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    TopicUnavailable,
    UnknownTopic,
)
from app.platform.kafka.fake_producer import FakeProducer
from app.platform.kafka.producer import KafkaProducer, Outcome, Producer
from app.platform.kafka.publisher import DirectPublisher, bind
from app.platform.kafka.settings import ClientCredentials, KafkaSettings, client_options
from app.platform.tracing import Trace

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


@pytest.mark.parametrize(
    "value",
    ["kafka", "kafka:port", "a:1,,b:2", "a:1, b:2", "://", "a:0", "a:1,b:65536", "a:99999", "a:-1"],
)
def test_servers_without_a_port_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert refusal(monkeypatch, KAFKA_BOOTSTRAP_SERVERS=value) == (
        "wrong configuration: KAFKA_BOOTSTRAP_SERVERS: use host:port, separated by commas, with"
        f" ports from 1 to 65535 (it is {value!r})"
    )


@pytest.mark.parametrize("value", ["kafka:65535", "[::1]:9092", "a:1,b.example:2"])
def test_servers_with_their_ports_are_taken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", value)

    assert load(KafkaSettings).kafka_bootstrap_servers == value


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


def test_all_wrong_variables_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_incomplete_credentials_are_refused_by_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, protocol: str, given: dict[str, str], missing: list[str]
) -> None:
    message = refusal(monkeypatch, KAFKA_SECURITY_PROTOCOL=protocol, **given)

    assert message.startswith(f"wrong configuration: KAFKA_SECURITY_PROTOCOL={protocol} with ")
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
def test_a_missing_certificate_file_is_a_wrong_configuration(name: str) -> None:
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
SILENCE = "no acknowledgement, ever"
NO_ROOM = "the partition's batch stays full"
LATE = "acknowledged after a second"


class Client:
    """As much of aiokafka's producer as ours needs; `fate` says what becomes of a value."""

    made: "list[Client]"
    refusals: Mapping[str, int] = {}
    out_of_sequence = False
    unauthorized_topics: frozenset[str] = frozenset()
    fate: Callable[[bytes | None], Exception | str | None]
    start_error: Exception | None = None

    def __init__(self, **_options: object) -> None:
        self.made.append(self)
        self.client = self.cluster = self
        self.handed: list[bytes | None] = []
        self.stopped = False

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.stopped = True

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return None if topic == "missing" else set(range(40))  # each of `numbered` gets its own

    available_partitions_for_topic = partitions_for_topic

    def add_topic(self, _topic: str) -> None:
        pass

    async def force_metadata_update(self) -> bool:
        return True

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, headers: list[object]
    ) -> "asyncio.Future[None]":
        batch = self.create_batch()
        batch.append(timestamp=None, key=key, value=value, headers=headers)
        return await self.send_batch(batch, topic, partition=0)

    def create_batch(self) -> "Batch":
        return Batch(self.fate)

    async def send_batch(
        self, batch: "Batch", _topic: str, partition: int
    ) -> "asyncio.Future[None]":
        assert partition in range(40)
        fate = next(filter(None, map(self.fate, batch.values)), None)
        if fate is NO_ROOM:
            await asyncio.sleep(60)
        if isinstance(fate, kafka_errors.ProducerClosed | AssertionError):
            raise fate
        self.handed += batch.values
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[None] = loop.create_future()
        if isinstance(fate, Exception):
            loop.call_soon(acknowledged.set_exception, fate)
        elif fate is None:
            loop.call_soon(acknowledged.set_result, None)
        elif fate is LATE:
            loop.call_later(1.0, acknowledge, acknowledged)
        return acknowledged


def acknowledge(acknowledged: "asyncio.Future[None]") -> None:
    if not acknowledged.done():
        acknowledged.set_result(None)


class Batch:
    """Two messages fill it."""

    def __init__(self, fate: Callable[[bytes | None], Exception | str | None]) -> None:
        self.values: list[bytes | None] = []
        self._fate = fate

    def append(
        self, *, timestamp: None, key: bytes | None, value: bytes | None, headers: list[object]
    ) -> object | None:
        assert isinstance(headers, list)
        fate = self._fate(value)
        if isinstance(fate, TypeError):
            raise fate
        if len(self.values) == 2:
            return None
        self.values.append(value)
        return self


@pytest.fixture(params=["one by one", "in batches"])
def client(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> type[Client]:
    """A client for the producers of a test: all is acknowledged, unless that is changed."""
    monkeypatch.setattr(
        producing, "_OWN_BATCHES_FROM", 1 if request.param == "in batches" else 1_000
    )

    class OfThisTest(Client):
        made: list[Client] = []  # noqa: RUF012  (of the class: all that were made)
        fate = staticmethod(lambda _value: None)

    monkeypatch.setattr(connection, "Client", OfThisTest)
    return OfThisTest


def connected(
    seconds: float = 10.0, max_bytes: int = 1_000_000
) -> AbstractAsyncContextManager[KafkaProducer]:
    return KafkaProducer(
        settings(kafka_send_timeout_seconds=seconds, kafka_max_message_bytes=max_bytes)
    ).running()


def numbered(count: int) -> list[Message]:
    return [Message("a", b"k%d" % n, b"%d" % n) for n in range(count)]


def kinds(outcomes: Sequence[Outcome]) -> list[type | None]:
    return [None if outcome is None else type(outcome) for outcome in outcomes]


def sent_and_timed() -> list[float]:
    names = ["kafka_messages_sent_total", "kafka_message_latency_seconds_count"]
    return [METRICS.get_sample_value(name, {"topic": "a"}) or 0.0 for name in names]


@pytest.mark.usefixtures("client")
async def test_what_is_acknowledged_is_delivered_and_counted() -> None:
    before = sent_and_timed()
    async with connected() as producer:
        await producer.send(MESSAGE)
        assert await producer.send_all([MESSAGE]) == [None]
        assert await producer.send_all(numbered(3)) == [None] * 3

    assert sent_and_timed() == [count + 5 for count in before]


async def test_a_message_that_is_too_large_does_not_reach_the_client(client: type[Client]) -> None:
    large = Message("a", b"k", b"x" * 1000)
    async with connected(max_bytes=1000) as producer:
        with pytest.raises(MessageTooLarge, match="KAFKA_MAX_MESSAGE_BYTES=1000"):
            await producer.send(large)
        outcomes = await producer.send_all([large, MESSAGE, *numbered(1)])

    assert kinds(outcomes) == [MessageTooLarge, NotSent, None]  # two of one key
    assert client.made[0].handed == [b"0"]


@pytest.mark.usefixtures("client")
async def test_an_unknown_topic_is_reported_within_the_deadline() -> None:
    missing = Message("missing", b"k", b"v")
    async with connected(seconds=2) as producer:
        with pytest.raises(UnknownTopic, match="the topic missing does not exist"):
            await producer.send(missing)
        outcomes = await producer.send_all([missing, *numbered(1)])

    assert kinds(outcomes) == [UnknownTopic, None]


@pytest.mark.parametrize("fate", [SILENCE, NO_ROOM])
async def test_what_is_not_acknowledged_ends_with_its_deadline(
    client: type[Client], fate: str
) -> None:
    client.fate = staticmethod(lambda value: None if value == b"0" else fate)
    async with connected(seconds=0.1) as producer:
        async with asyncio.timeout(20):
            with pytest.raises(BrokerUnavailable, match=r"acknowledged .* within 0\.1 s"):
                await producer.send(MESSAGE)
            outcomes = await producer.send_all(numbered(3))
        await producer.send(numbered(1)[0])  # what was late leaves nothing behind

    assert kinds(outcomes) == [None, BrokerUnavailable, BrokerUnavailable]


async def test_an_acknowledgement_that_comes_too_late_troubles_nobody(client: type[Client]) -> None:
    troubles: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
    client.fate = staticmethod(lambda _value: LATE)
    try:
        async with connected(seconds=0.1) as producer:
            outcomes = await producer.send_all(numbered(3))
            await asyncio.sleep(1.0)
    finally:
        loop.set_exception_handler(None)

    assert kinds(outcomes) == [BrokerUnavailable] * 3
    assert troubles == []


async def test_a_client_that_cannot_connect_says_why(client: type[Client]) -> None:
    client.start_error = kafka_errors.UnknownError("wrong password")
    large = Message("a", b"k", b"x" * 1000)
    async with connected(seconds=0.1, max_bytes=1000) as producer:
        with pytest.raises(BrokerUnavailable, match=r"not connected to Kafka: .*wrong password"):
            await producer.send(MESSAGE)
        outcomes = await producer.send_all([MESSAGE, large])

    assert kinds(outcomes) == [BrokerUnavailable, MessageTooLarge]


@pytest.mark.parametrize("batch", [1, 2])
async def test_a_client_that_is_out_of_sequence_is_replaced(
    client: type[Client], batch: int
) -> None:
    client.fate = staticmethod(
        lambda _value: kafka_errors.OutOfOrderSequenceNumber() if len(client.made) == 1 else None
    )
    async with connected() as producer:
        outcomes = await producer.send_all(numbered(batch))
        assert kinds(outcomes) == [BrokerUnavailable] * batch
        assert await producer.send_all(numbered(batch)) == [None] * batch

    assert [made.stopped for made in client.made] == [True, True]


async def test_the_last_failure_is_reported_until_a_client_connects(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.fate = staticmethod(lambda _value: kafka_errors.ProducerFenced())
    async with connected(seconds=1.0) as producer:
        await producer.ping()
        monkeypatch.setattr(client, "start", lambda _self: asyncio.sleep(60))
        for reason in ("the producer was replaced", "not connected to Kafka: ProducerFenced"):
            with pytest.raises(BrokerUnavailable, match=reason):
                await producer.send(MESSAGE)


async def test_a_client_whose_failure_passes_stays(client: type[Client]) -> None:
    client.fate = staticmethod(lambda _value: kafka_errors.NotLeaderForPartitionError())
    async with connected() as producer:
        with pytest.raises(TopicUnavailable, match="NotLeaderForPartitionError"):
            await producer.send(MESSAGE)

    assert len(client.made) == 1


async def test_of_a_refused_batch_each_is_found_out_alone(client: type[Client]) -> None:
    client.fate = staticmethod(
        lambda value: kafka_errors.MessageSizeTooLargeError() if value == b"1" else None
    )
    async with connected() as producer:
        outcomes = await producer.send_all(numbered(3))
        with pytest.raises(MessageRejected, match="MessageSizeTooLargeError"):
            await producer.send(numbered(2)[1])

    assert kinds(outcomes) == [None, MessageRejected, None]
    assert len(client.made) == 1  # a refusal costs no other topic anything


def refused_by(error: type[kafka_errors.KafkaError]) -> float:
    labels = {"topic": "a", "reason": error.__name__}
    return METRICS.get_sample_value("kafka_topic_refusals_total", labels) or 0.0


@pytest.mark.parametrize(
    "error",
    [
        kafka_errors.TopicAuthorizationFailedError,
        kafka_errors.InvalidTimestampError,
        kafka_errors.PolicyViolationError,
        kafka_errors.NotEnoughReplicasError,
        kafka_errors.UnknownError,  # such as a quota, of which aiokafka knows no number
    ],
)
async def test_a_refusal_that_is_not_the_records_own_is_the_topics(
    client: type[Client], error: type[kafka_errors.KafkaError]
) -> None:
    refusing, before = True, refused_by(error)
    client.fate = staticmethod(lambda _value: error() if refusing else None)
    async with connected() as producer:
        assert kinds(await producer.send_all(numbered(2))) == [TopicUnavailable] * 2
        with pytest.raises(TopicUnavailable):
            await producer.send(MESSAGE)
        with pytest.raises(Unhealthy, match=f"^a: {error.__name__}"):
            await producer.check_topics()
        refusing = False
        await producer.send(MESSAGE)
        await producer.check_topics()

    assert len(client.made) == 1
    assert refused_by(error) == before + 3


async def test_a_refusal_is_forgotten_when_nobody_sends_there(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise an API that is not ready for it would get no request that could find out.
    monkeypatch.setattr(refusals, "_REMEMBERED_SECONDS", 0.0)
    client.fate = staticmethod(lambda _value: kafka_errors.PolicyViolationError())
    async with connected() as producer:
        with pytest.raises(TopicUnavailable):
            await producer.send(MESSAGE)
        await asyncio.sleep(0.01)
        await producer.check_topics()


async def test_a_refusal_ends_the_sends_to_its_topic(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "_OWN_BATCHES_FROM", 1_000)
    counts: dict[str, int] = {}
    monkeypatch.setattr(client, "refusals", counts)

    def fate(value: bytes | None) -> Exception | None:
        if value == b"0":
            counts["a"] = 1
            refused: Exception = kafka_errors.TopicAuthorizationFailedError()
            return refused
        return None

    client.fate = staticmethod(fate)
    async with connected() as producer:
        outcomes = await producer.send_all([*numbered(2), Message("b", b"k", b"v")])

    assert kinds(outcomes) == [TopicUnavailable, TopicUnavailable, None]


async def test_what_the_client_is_closed_to_is_sent_again_by_another(client: type[Client]) -> None:
    client.fate = staticmethod(
        lambda _value: kafka_errors.ProducerClosed() if len(client.made) == 1 else None
    )
    async with connected() as producer:
        assert kinds(await producer.send_all(numbered(3))) == [BrokerUnavailable] * 3
        assert await producer.send_all(numbered(3)) == [None] * 3

    assert len(client.made) == 2


async def test_a_partition_that_is_gone_meanwhile_is_looked_for_again(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "_OWN_BATCHES_FROM", 1)
    client.fate = staticmethod(lambda _value: AssertionError() if len(client.made) == 1 else None)
    async with connected() as producer:
        assert kinds(await producer.send_all(numbered(3))) == [BrokerUnavailable] * 3
        assert await producer.send_all(numbered(3)) == [None] * 3


async def test_a_key_keeps_its_order_over_several_batches(
    client: type[Client],
) -> None:
    values = [b"%d" % n for n in range(7)]
    async with connected() as producer:
        await producer.send_all([Message("a", b"k", value) for value in values])

    assert client.made[0].handed == values


async def test_a_key_has_one_partition_in_single_and_bulk_sends() -> None:
    alone = [Message("a", b"k%d" % n, b"alone") for n in range(20)]
    many = [Message("a", b"k%d" % (n % 20), b"%d" % n) for n in range(200)]
    large = Message("a", b"k0", b"x" * (connection._BATCH_BYTES + 1))
    keyless = Message("a", None, b"keyless", (("name", b"value"), ("null", None)))
    with MockBroker() as mock:
        async with KafkaProducer(
            settings(kafka_bootstrap_servers=mock.bootstrap_servers)
        ).running() as producer:
            for message in alone:
                await producer.send(message)
            outcomes = await producer.send_all([*many, large, keyless])
        records = await everything(mock.bootstrap_servers, 222)

    assert outcomes == [None] * 202
    for key in {message.key for message in alone}:
        ours = [record for record in records if record.key == key]
        assert len({record.partition for record in ours}) == 1
        sent = [message.value for message in [*alone, *many, large] if message.key == key]
        assert [record.value for record in ours] == sent
    (found,) = [record for record in records if record.key is None]
    assert (found.value, found.headers) == (keyless.value, keyless.headers)
    assert len({record.partition for record in records}) > 1


async def everything(servers: str, count: int) -> list[ConsumerRecord]:
    """The first `count` records of topic `a`; those of a partition in their order."""
    consumer = AIOKafkaConsumer("a", bootstrap_servers=servers, auto_offset_reset="earliest")
    async with asyncio.timeout(30):
        await consumer.start()
        try:
            return [await consumer.getone() for _ in range(count)]
        finally:
            await consumer.stop()


async def test_what_the_client_cannot_take_is_an_error_of_the_caller(client: type[Client]) -> None:
    client.fate = staticmethod(lambda _value: TypeError("no bytes"))
    async with connected() as producer:
        for sending in (producer.send(MESSAGE), producer.send_all(numbered(2))):
            with pytest.raises(TypeError, match="no bytes"):
                await sending

    assert len(client.made) == 1


async def test_each_has_the_whole_time_though_one_timer_serves_all() -> None:
    deadline = Deadline(1.0)
    loop = asyncio.get_running_loop()

    async def late() -> float:
        started = loop.time()
        with pytest.raises(TimeoutError):
            await deadline.wait_for(asyncio.sleep(10))
        return loop.time() - started

    async def in_time() -> str:
        result = await deadline.wait_for(asyncio.sleep(0.1, "done"))
        await asyncio.sleep(1.2)  # what it does afterwards has no deadline
        return result

    beginning = asyncio.create_task(late())
    quick = asyncio.create_task(in_time())
    await asyncio.sleep(0.1)
    first, second = await asyncio.gather(beginning, late())

    assert await quick == "done"
    assert 0.99 < min(first, second) <= max(first, second) < 5
    assert await in_time() == "done"


async def test_a_task_that_another_cancels_is_not_late() -> None:
    deadline = Deadline(0.05)
    task = asyncio.create_task(deadline.wait_for(asyncio.sleep(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_late_task_that_another_cancels_is_cancelled() -> None:
    async def cancelled_when_it_is_late() -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            await asyncio.sleep(10)
        finally:
            this.cancel()
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(Deadline(0.05).wait_for(cancelled_when_it_is_late()))


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
        NotSent,
    ]
    assert producer.sent == [MESSAGE]


async def test_a_forwarded_message_may_be_larger_than_a_new_one() -> None:
    producer = FakeProducer(max_bytes=1000)
    forwarded = Message("a", b"k", b"x" * 1000, forwarded=True)

    await producer.send(forwarded)

    assert producer.sent == [forwarded]


class RecoveringProducer(FakeProducer):
    """Away for the first `failures` calls."""

    def __init__(self, failures: int, max_bytes: int = 1_000_000) -> None:
        super().__init__(max_bytes=max_bytes)
        self.calls: list[int] = []
        self._failures = failures

    async def send_all(self, messages: Sequence[Message]) -> list[Outcome]:
        self.calls.append(len(messages))
        self.available = len(self.calls) > self._failures
        return await super().send_all(messages)


def publisher(
    producer: Producer, deadline: float = 5.0, max_bytes: int = 1_000_000
) -> DirectPublisher:
    mark = CommitTracker(AsyncSession())  # never committed here
    return DirectPublisher(producer, REGISTRY, deadline, max_bytes, mark)


def lost() -> float:
    return METRICS.get_sample_value("kafka_events_lost_total", {"topic": TOPIC}) or 0.0


async def test_the_count_of_lost_events_is_there_before_one_is_lost() -> None:
    registry = EventRegistry("watchful", [EventType(MeterRead)])
    bind(load(KafkaSettings), registry, FakeProducer(), asyncio.Event())

    labels = {"topic": "watchful.meter.read"}
    assert METRICS.get_sample_value("kafka_events_lost_total", labels) == 0


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
    await published.after_commit()

    assert [decode(m.topic, m.value, REGISTRY) for m in producer.sent] == events


async def test_an_event_goes_out_once() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    await published.publish(meter_read())
    await published.after_commit()
    await published.after_commit()

    assert len(producer.sent) == 1


async def test_without_events_the_producer_is_left_alone() -> None:
    producer = RecoveringProducer(failures=0)
    await publisher(producer).after_commit()

    assert producer.calls == []


async def test_an_event_carries_the_story_in_which_it_was_published() -> None:
    producer = FakeProducer()
    published = publisher(producer)
    with tracing.bind_trace(Trace("story", "cause")):
        await published.publish(meter_read())
    await published.after_commit()

    assert header(producer.sent[0].headers, "correlation-id") == "story"
    assert header(producer.sent[0].headers, "causation-id") == "cause"


async def test_what_may_pass_later_is_sent_again() -> None:
    producer = RecoveringProducer(failures=2)
    published = publisher(producer)
    before = lost()
    await published.publish(meter_read())
    await published.after_commit()

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
    await published.after_commit()

    assert [m.key for m in producer.sent] == [b"m-2", b"m-3", b"m-1"]


async def test_messages_behind_a_failed_one_of_their_key_follow_it() -> None:
    producer = LosesTheFirst()
    published = publisher(producer)
    events = [meter_read(count=count) for count in range(3)]
    for event in events:
        await published.publish(event)
    await published.after_commit()

    sent_again = producer.sent[2:]
    assert [decode(m.topic, m.value, REGISTRY) for m in sent_again] == events


async def test_after_its_deadline_an_event_is_lost_counted_and_logged() -> None:
    producer = FakeProducer()
    producer.available = False
    published = publisher(producer, deadline=0.15)
    before = lost()
    await published.publish(meter_read("m-9"))
    with capture_logs() as logs:
        await published.after_commit()

    assert lost() == before + 1
    (entry,) = [entry for entry in logs if entry["event"] == "event not published"]
    assert entry["log_level"] == "error"
    assert (entry["topic"], entry["key"]) == (TOPIC, "m-9")
    assert '"meter_id":"m-9"' in entry["value"]
    assert entry["error"] == "BrokerUnavailable: the fake broker is unavailable"


async def test_what_can_never_pass_is_not_tried_again() -> None:
    producer = RecoveringProducer(failures=0, max_bytes=10)
    published = publisher(producer)
    before = lost()
    await published.publish(meter_read())
    await published.after_commit()

    assert producer.calls == [1]
    assert lost() == before + 1


async def test_an_event_that_is_too_large_fails_the_transaction() -> None:
    producer = FakeProducer()
    published = publisher(producer, max_bytes=2000)

    with pytest.raises(MessageTooLarge, match="KAFKA_MAX_MESSAGE_BYTES=2000"):
        await published.publish(meter_read(note="x" * 2000))
    await published.after_commit()
    assert producer.sent == []
