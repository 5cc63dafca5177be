"""Settings of the environment and of `.env`."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from app import wiring
from app.platform.config import ConfigurationError, EnvSettings, Settings, load
from app.platform.database.engine import DatabaseSettings
from app.platform.http.app import create_app
from app.platform.service import Component, Role, Service

SECRET = "tr0ub4dor-3"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine and no .env of the project takes part."""
    monkeypatch.chdir(tmp_path)
    for name in (*Settings.model_fields, *DatabaseSettings.model_fields):
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(settings: type[EnvSettings]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(settings)
    # Neither the message nor what a traceback would show with it.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    return str(refused.value)


def test_settings_have_defaults() -> None:
    settings = load(Settings)

    assert settings.log_level == "INFO"
    assert settings.log_format == "auto"


def test_variables_are_read_in_either_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_NAME", "shop")
    monkeypatch.setenv("log_level", "DEBUG")

    settings = load(Settings)

    assert (settings.service_name, settings.log_level) == ("shop", "DEBUG")


def test_the_environment_precedes_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SERVICE_NAME=from-file\nLOG_FORMAT=json\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("SERVICE_NAME", "from-environment")

    settings = load(Settings)

    assert (settings.service_name, settings.log_format) == ("from-environment", "json")


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_the_log_level_may_have_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)

    assert load(Settings).log_level == "DEBUG"


def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "")

    assert load(Settings).log_level == "INFO"


@pytest.mark.parametrize("name", ["Shop", "my.shop", "-shop", "shop\n", "x" * 81])
def test_a_service_name_must_fit_into_topic_names(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SERVICE_NAME", name)

    assert "SERVICE_NAME" in refusal(Settings)


def test_the_message_shows_each_wrong_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("LOG_FORMAT", "xml")

    message = refusal(Settings)

    assert message.startswith("wrong configuration: LOG_LEVEL: ")
    assert "(it is 'LOUD')" in message
    assert "LOG_FORMAT: " in message
    assert "(it is 'xml')" in message


class GreetingSettings(EnvSettings):
    greeting_limit: int = 1


def test_a_process_names_all_wrong_settings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "LOG_LEVEL": "loud",
        "KAFKA_SEND_TIMEOUT_SECONDS": "0",
        "DATABASE_POOL_SIZE": "ten",
        "GREETING_LIMIT": "many",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)

    service = Service([Component("greetings", settings=[GreetingSettings])])
    with pytest.raises(ConfigurationError) as raised:
        create_app(service, {Role.API})

    message = str(raised.value)
    assert message.count("wrong configuration") == 1
    for name, value in wrong.items():
        assert f"{name}: " in message
        assert f"(it is {value!r})" in message


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}",  # where a port would stand
        f"postgresql://user:x@host:{SECRET}/db",
        f"user:{SECRET}@host",
        SECRET,
        f"postgresql://user:{SECRET}@[::1/db",
        f"postgresql://user:{SECRET}@host:70000/db",
        f"postgresql://user:{SECRET}@host:0/db",
    ],
)
def test_a_wrong_database_url_is_shown_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    message = refusal(DatabaseSettings)

    assert message.startswith("wrong configuration: DATABASE_URL: ")
    assert "postgresql://" in message
    assert "Value error" not in message
    assert SECRET not in message
    assert "user" not in message.replace("postgresql://user:password@host:5432/database", "")


def test_a_valid_database_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{SECRET}@host/db")
    settings: Any = load(DatabaseSettings)

    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


class FeatureSettings(EnvSettings):
    """Those of something that is plugged in."""

    feature_size: int = Field(1, ge=1)


def test_a_wrong_setting_of_a_component_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service([Component("feature", settings=[FeatureSettings])])
    monkeypatch.setenv("FEATURE_SIZE", "0")

    with pytest.raises(ConfigurationError, match="FEATURE_SIZE"):
        create_app(service, {Role.WORKER})


def test_a_missing_certificate_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("KAFKA_SSL_CAFILE", "/nowhere/ca.pem")

    with pytest.raises(ConfigurationError, match="KAFKA_SSL_CAFILE"):
        create_app(wiring.service, {Role.WORKER})
