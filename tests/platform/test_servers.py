from pathlib import Path

import pytest

from app.platform.dev import java, kafka, servers, training
from app.platform.dev.errors import DevelopmentServerError, JarsUnavailable, ServerFailed
from app.platform.dev.servers import Servers

DATABASE = "postgresql://postgres@db.example:5432/app"
KAFKA = "kafka.example:9092"


class StoppedServer:
    """Takes the place of an embedded server."""

    url = "postgresql://embedded"

    def __init__(self, *_args: object, **_options: object) -> None:
        self.stopped = self.killed = False

    def start(self, *_args: object, **_options: object) -> None:
        started.append(self)

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


started: list[StoppedServer] = []


@pytest.fixture(autouse=True)
def _nothing_started() -> None:
    started.clear()


@pytest.fixture
def _no_jars(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(**_options: object) -> list[Path]:
        raise JarsUnavailable("no way to the repository")

    monkeypatch.setattr(kafka, "kafka_jars", unavailable)


def test_given_servers_are_not_started(tmp_path: Path) -> None:
    with Servers(tmp_path, database_url=DATABASE, kafka_bootstrap_servers=KAFKA) as both:
        assert both.database_url == DATABASE
        assert both.kafka_bootstrap_servers == KAFKA
        assert both.broker_kind == "external"

    assert list(tmp_path.iterdir()) == []


def test_environment_names_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", KAFKA)

    with Servers(tmp_path) as both:
        assert (both.database_url, both.kafka_bootstrap_servers) == (DATABASE, KAFKA)


@pytest.mark.usefixtures("_no_jars")
def test_without_jars_the_mock_broker_serves_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    with Servers(tmp_path, database_url=DATABASE, say=said.append) as both:
        assert both.broker_kind == "mock"
        assert both.kafka_bootstrap_servers.startswith("127.0.0.1:")

    assert len(said) == 1
    assert "no way to the repository" in said[0]


def test_server_that_is_up_is_stopped_when_the_other_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingCluster(StoppedServer):
        def start(self, *_args: object, **_options: object) -> None:
            raise ServerFailed("no memory")

    monkeypatch.setattr(servers, "PostgresServer", StoppedServer)
    monkeypatch.setattr(servers, "KafkaCluster", FailingCluster)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)

    with pytest.raises(DevelopmentServerError, match="no memory"):
        Servers(tmp_path).start()

    assert [server.stopped for server in started] == [True]


@pytest.mark.parametrize("fsync", [True, False])
def test_where_data_may_be_lost_kafka_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    monkeypatch.setattr(servers, "KafkaCluster", StoppedServer)
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)

    with Servers(tmp_path, database_url=DATABASE, fsync=fsync):
        (kafka,) = started

    assert (kafka.stopped, kafka.killed) == (fsync, not fsync)


def test_no_broker_is_trained_where_its_archive_cannot_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setattr(training, "kafka_jars", lambda **_: [])
    monkeypatch.setattr(java, "archive_path", lambda _: missing / "classes.aot")
    monkeypatch.setattr(training, "KafkaCluster", pytest.fail)
    training.train(tmp_path / "training")
    assert not missing.exists()
