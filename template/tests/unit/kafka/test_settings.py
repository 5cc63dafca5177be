from typing import Any

import pytest
from pydantic import SecretStr

from app.config import ConfigurationError, load
from app.kafka.settings import KafkaSettings

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
