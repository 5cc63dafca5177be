"""Settings, units of work, and the HTTP server of a process."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import Field
from samples import meter_read

from app import wiring
from app.platform.config import ConfigurationError, EnvSettings, Settings, load
from app.platform.database.engine import DatabaseSettings
from app.platform.database.unit_of_work import UnitOfWorkFactory
from app.platform.events.event import BaseEvent
from app.platform.http.app import create_app
from app.platform.http.server import STOP_SIGNALS, PortInUse, Server, listen
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


def test_settings_come_from_the_environment_in_either_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_NAME", "shop")
    monkeypatch.setenv("log_level", "DEBUG")

    settings = load(Settings)

    assert (settings.service_name, settings.log_level) == ("shop", "DEBUG")


def test_settings_come_from_the_env_file_and_the_environment_goes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SERVICE_NAME=from-file\nLOG_FORMAT=json\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("SERVICE_NAME", "from-environment")

    settings = load(Settings)

    assert (settings.service_name, settings.log_format) == ("from-environment", "json")


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_the_log_level_is_taken_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)

    assert load(Settings).log_level == "DEBUG"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "")

    assert load(Settings).log_level == "INFO"


@pytest.mark.parametrize("name", ["Shop", "my.shop", "-shop", "shop\n", "x" * 81])
def test_a_service_name_that_cannot_begin_a_topic_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SERVICE_NAME", name)

    assert "SERVICE_NAME" in refusal(Settings)


def test_the_message_names_each_wrong_variable_and_shows_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    monkeypatch.setenv("LOG_FORMAT", "xml")

    message = refusal(Settings)

    assert message.startswith("wrong configuration: LOG_LEVEL: ")
    assert "(it is 'LOUD')" in message
    assert "LOG_FORMAT: " in message
    assert "(it is 'xml')" in message


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
def test_a_wrong_database_url_is_told_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    message = refusal(DatabaseSettings)

    assert message.startswith("wrong configuration: DATABASE_URL: ")
    assert "postgresql://" in message
    assert "Value error" not in message
    assert SECRET not in message
    assert "user" not in message.replace("postgresql://user:password@host:5432/database", "")


def test_a_right_database_url_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{SECRET}@host/db")
    settings: Any = load(DatabaseSettings)

    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()


class FeatureSettings(EnvSettings):
    """Those of something that is plugged in."""

    feature_size: int = Field(1, ge=1)


def test_a_wrong_setting_of_what_is_plugged_in_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service([Component("feature", settings=[FeatureSettings])])
    monkeypatch.setenv("FEATURE_SIZE", "0")

    with pytest.raises(ConfigurationError, match="FEATURE_SIZE"):
        create_app(service, {Role.WORKER})


def test_a_certificate_that_is_not_there_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("KAFKA_SSL_CAFILE", "/nowhere/ca.pem")

    with pytest.raises(ConfigurationError, match="KAFKA_SSL_CAFILE"):
        create_app(wiring.service, {Role.WORKER})


class Story:
    """A record of what happened, in order: a session maker, its sessions, and the publisher bound to them."""

    def __init__(self, commit_error: Exception | None = None) -> None:
        self.happened: list[str] = []
        self._commit_error = commit_error

    def __call__(self) -> "FakeSession":
        self.happened.append("open")
        return FakeSession(self.happened, self._commit_error)

    def bind(self, session: Any) -> "FakePublisher":
        return FakePublisher(self.happened)


class FakeSession:
    def __init__(self, happened: list[str], commit_error: Exception | None) -> None:
        self._happened = happened
        self._commit_error = commit_error

    def begin(self) -> "FakeTransaction":
        return FakeTransaction(self._happened, self._commit_error)

    async def __aenter__(self) -> "FakeSession":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._happened.append("close")


class FakeTransaction:
    def __init__(self, happened: list[str], commit_error: Exception | None) -> None:
        self._happened = happened
        self._commit_error = commit_error

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self,
        error: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._happened.append("rollback" if error else "commit")
        if error is None and self._commit_error is not None:
            raise self._commit_error


class FakePublisher:
    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    async def publish(self, event: BaseEvent) -> None:
        self._happened.append("publish")

    async def has_committed(self, error: BaseException) -> bool:
        return False

    async def after_commit(self) -> None:
        self._happened.append("hand on")


def units(story: Story) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(story, story.bind)  # type: ignore[arg-type]  # a fake in its place


async def test_events_are_handed_on_after_the_commit_and_with_the_connection_given_back() -> None:
    story = Story()
    async with units(story).begin() as uow:
        await uow.events.publish(meter_read())

    assert story.happened == ["open", "publish", "commit", "close", "hand on"]


async def test_an_error_rolls_back_and_nothing_is_handed_on() -> None:
    story = Story()

    async def fail_half_way() -> None:
        async with units(story).begin() as uow:
            await uow.events.publish(meter_read())
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await fail_half_way()

    assert story.happened == ["open", "publish", "rollback", "close"]


async def test_when_the_commit_fails_nothing_is_handed_on() -> None:
    story = Story(commit_error=ConnectionError("away"))
    with pytest.raises(ConnectionError):
        async with units(story).begin() as uow:
            await uow.events.publish(meter_read())

    assert story.happened == ["open", "publish", "commit", "close"]


async def test_each_unit_of_work_has_a_session_of_its_own() -> None:
    story = Story()
    async with units(story).begin() as first, units(story).begin() as second:
        assert first.session is not second.session
        assert first.events is not second.events


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    """Somebody else's port."""
    with socket.create_server((host, 0)) as other:
        yield other.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


def test_the_port_is_open_from_the_start() -> None:
    port = free_port()
    with listen("127.0.0.1", port), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with listening() as port, pytest.raises(PortInUse) as refused:
        listen("127.0.0.1", port)

    assert str(refused.value) == (
        f"port {port} on 127.0.0.1 is in use: stop the process there, or choose another --port"
    )
    assert isinstance(refused.value, ConfigurationError)


def test_a_port_can_be_used_again_at_once() -> None:
    port = free_port()
    listen("127.0.0.1", port).close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.1", "127.0..1", "bü..cher", "no such host"])
def test_a_host_that_is_not_of_this_machine_is_told(host: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on") as refused:
        listen(host, free_port())

    assert host in str(refused.value)
    assert not str(refused.value).endswith(": None")


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_ipv6_address_is_taken() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")

    with listen("::1", 0) as listener:
        assert listener.family is socket.AF_INET6


@pytest.fixture
def server() -> Server:
    return Server(uvicorn.Config(FastAPI(), log_config=None))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_asks_the_server_to_stop_and_does_not_end_the_process(
    server: Server, number: signal.Signals
) -> None:
    with server.capture_signals():
        os.kill(os.getpid(), number)

    assert server.should_exit


def test_handlers_of_signals_are_put_back(server: Server) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with server.capture_signals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before

    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
