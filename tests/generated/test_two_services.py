"""Two services on one machine share a Kafka under `app dev`, and outlive each other."""

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import demo, matrix
from tests.generated.conftest import Service
from tests.generated.test_round_trip import processes_in
from tests.generated.workspace import Workspace
from tests.matrix import Variant
from tests.shell import environment

SECONDS = 60
LISTENER = Variant(sample_domain=False, others={"service_name": "listener"})
# As `app new consumer` leaves it, and with a body.
EMPTY = '"""Write with `uow.session` and publish with `uow.events`; the unit of work commits."""'
COUNTING = "await HeartbeatCountRepository(uow.session).add({event.title: 1})"

# One run of `app dev` at a time in the folder of a service.
pytestmark = pytest.mark.xdist_group(matrix.codes()[0].code)


@pytest.fixture
def listener(workspace: Workspace, base: Service, repository: Path) -> Service:
    """A service that counts the posts of `base` by their titles."""
    path = workspace.render(LISTENER, repository, "listener")
    settings = workspace.shared_environment(path)
    service = Service(path, "listener", settings, base.summary)
    publisher = str(demo.answers_of(base.path)["service_name"])
    names = ("--service", publisher, "--slice", "heartbeats", "--field", "title:str")
    service.run("app", "new", "event", "post.published", *names)
    service.run("app", "new", "consumer", "watched-posts", "post.published")
    handlers = path / "app" / "heartbeats" / "handlers.py"
    written = handlers.read_text()
    assert EMPTY in written
    handlers.write_text(written.replace(EMPTY, COUNTING))
    return service


def test_the_second_uses_the_kafka_of_the_first_and_outlives_it(
    base: Service, listener: Service
) -> None:
    with ExitStack() as longer:
        with demo.running_service(base.path, "--fresh") as (first, _):
            sharing = demo.running_service(
                listener.path, "--kafka-of", str(base.path), settings=listener.settings
            )
            second, _ = longer.enter_context(sharing)
            assert f"{base.path}/.dev/kafka, with my-service ({base.path})" in log(listener)
            author = demo.call(f"{first}/users", demo.SAMPLE_TRIP.body)[1]["id"]
            post = {"author_id": author, "title": "published", "body": "By the first."}
            assert demo.call(f"{first}/posts", post)[0] == 201
            wait_until_counted(second, "published", listener)
        assert f"Kafka stays up for listener ({listener.path})" in log(base)
        event = {"event_type": "post.published", "post_id": 1, "title": "sent"}
        send(listener, event)
        wait_until_counted(second, "sent", listener)
    assert processes_in(base.path) == []
    assert processes_in(listener.path) == []


def log(service: Service) -> str:
    return (service.path / "dev.log").read_text()


def send(service: Service, event: dict[str, object]) -> None:
    """Publish the event of another service in its place."""
    result = subprocess.run(
        ("uv", "run", "--no-sync", "app", "events", "send", "-"),
        cwd=service.path,
        env={**environment("DATABASE_URL|KAFKA_"), **service.settings},
        input=json.dumps(event),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def wait_until_counted(address: str, title: str, service: Service) -> None:
    demo.wait_until(
        lambda: demo.call(f"{address}/heartbeats/{title}")[1]["heartbeats"] == 1,
        SECONDS,
        f"{title} was not consumed",
        service.path,
    )
