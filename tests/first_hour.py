"""The first hour with a service, as its README describes it, with the time of each step.

python -m tests.first_hour PATH

It starts a service with the README's first command, adds an entity, edits it, sends an event by hand,
mends what became a dead letter, and lets a second service consume the first one's event. Each step has
to have its effect; times are only printed.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import demo, rendering, shell
from tests.rendering import ROOT

SECONDS = 120
START_SECONDS = 300
HANDLER = "await ShipmentRepository(uow.session).confirm(event.shipment_id, event.timestamp)"
RELOADING, RELOADED = "reloading after a change", "reloaded in"
FAILING = f'raise ValueError("no label")\n    {HANDLER}'
ROUTE = """

@router.get("/labels/count")
async def count_labels() -> dict[str, int]:
    return {"labels": 1}
"""
# As `app new consumer` leaves it, and with a body.
EMPTY = '"""Write with `uow.session` and publish with `uow.events`; the unit of work commits."""'
COUNTING = "await HeartbeatCountRepository(uow.session).add({event.address: 1})"


@dataclass
class Step:
    what: str
    seconds: float
    goal: float | None


@dataclass
class FirstHour:
    """A person's steps in `clone`, a clone of the template, in a shell with `settings`."""

    clone: Path
    settings: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)

    @property
    def service(self) -> Path:
        return self.clone.parent / "my-service"

    @property
    def listener(self) -> Path:
        return self.clone.parent / "listener"

    @property
    def environment(self) -> dict[str, str]:
        return {**self.settings, "PATH": f"{self.clone}/.venv/bin:{self.settings['PATH']}"}

    @property
    def log(self) -> Path:
        """The output of `app dev` of the first service."""
        return self.clone.parent / "dev.log"

    def record(self) -> None:
        with self.first_service() as base:
            demo.round_trip(base, demo.log_tail(self.service), demo.SAMPLE_TRIP)
            self.add_an_entity(base)
            self.edit(base)
            self.mend_a_dead_letter()
            self.render_the_listener()
            with self.second_service() as other:
                self.consume_from_the_first(base, other)

    @contextmanager
    def timed(self, what: str, goal: float | None = None) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.steps.append(Step(what, time.monotonic() - start, goal))

    def run(self, *command: str, folder: Path | None = None) -> str:
        demo.step(" ".join(command))
        output = shell.run(command, folder or self.service, self.environment, START_SECONDS)
        print(output)
        return output

    @contextmanager
    def running(self, command: str, folder: Path, log: Path) -> Iterator[str]:
        """Run a shell command that ends in `app dev`, as in a terminal, until Ctrl-C."""
        port = demo.free_port()
        demo.step(command)
        with log.open("wb") as output:
            process = subprocess.Popen(
                ("bash", "-c", f"{command} --port {port}"),
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            base = f"http://127.0.0.1:{port}"
            demo.wait_until(
                lambda: demo.is_ready(base, process), START_SECONDS, "not ready", log.parent
            )
            yield base
        finally:  # also after a failure, or its servers would stay
            demo.stop(process, log.parent)

    @contextmanager
    def first_service(self) -> Iterator[str]:
        command, *_ = commands("Start a service")
        assert command.endswith("&& uv run app dev")
        start = time.monotonic()
        with self.running(f"{command} --reload", self.clone, self.log) as base:
            self.steps.append(Step("nothing -> running", time.monotonic() - start, 60))
            (self.service / "dev.log").symlink_to(self.log)
            yield base

    def add_an_entity(self, base: str) -> None:
        with self.timed("app new entity -> served"):
            self.run("uv", "run", "app", "new", "entity", "shipments", "--field", "address:str")
            self.wait(f"{base}/shipments", lambda answer: answer.get("items") == [])
        with self.timed("app new entity -> its tests green", 30):
            self.run("uv", "run", "pytest", "-q", "tests/shipments")

    def edit(self, base: str) -> None:
        router = self.service / "app" / "shipments" / "router.py"
        text = router.read_text()
        marker = '\n\n@router.get("/{shipment_id}"'
        assert text.count(marker) == 1, text
        with self.reloading(), self.timed("edit -> served", 2):
            router.write_text(text.replace(marker, ROUTE + marker))
            self.wait(f"{base}/shipments/labels/count", {"labels": 1}.__eq__)

    def mend_a_dead_letter(self) -> None:
        handlers = self.service / "app" / "shipments" / "handlers.py"
        written = handlers.read_text()
        assert HANDLER in written
        with self.reloading():
            handlers.write_text(written.replace(HANDLER, FAILING))
        with self.timed("app events send -> dead letter"):
            sample = "tests/contracts/shipment.created.json"
            self.run("uv", "run", "app", "events", "send", sample)
            deadline = time.monotonic() + SECONDS
            while "ValueError: no label" not in self.run("uv", "run", "app", "dlq", "list"):
                assert time.monotonic() < deadline, demo.log_tail(self.service)()
                time.sleep(0.2)
        with self.reloading():
            handlers.write_text(written)
        with self.timed("app dlq replay --wait"):
            assert "applied 1," in self.run("uv", "run", "app", "dlq", "replay", "--wait")

    def render_the_listener(self) -> None:
        answers = ("-d", "project_name=Listener", "-d", "sample_domain=false")
        self.run("copier", "copy", "--defaults", *answers, str(self.clone), str(self.listener))
        names = ("--service", "my-service", "--slice", "heartbeats", "--field", "address:str")
        app = ("uv", "run", "app", "new")
        self.run(*app, "event", "shipment.created", *names, folder=self.listener)
        consumer = (*app, "consumer", "watched-shipments", "shipment.created")
        self.run(*consumer, folder=self.listener)
        handlers = self.listener / "app" / "heartbeats" / "handlers.py"
        written = handlers.read_text()
        assert EMPTY in written
        handlers.write_text(written.replace(EMPTY, COUNTING))

    @contextmanager
    def second_service(self) -> Iterator[str]:
        start = time.monotonic()
        command, log = f"uv run app dev --kafka-of '{self.service}'", self.listener / "dev.log"
        with self.running(command, self.listener, log) as base:
            self.steps.append(Step("the second service runs", time.monotonic() - start, None))
            yield base

    def consume_from_the_first(self, base: str, other: str) -> None:
        with self.timed("POST to the first -> effect in the second"):
            status, _ = demo.call(f"{base}/shipments", {"address": "harbour"})
            assert status == 201
            self.wait(f"{other}/heartbeats/harbour", lambda answer: answer.get("heartbeats") == 1)

    def wait(self, address: str, is_there: Callable[[dict[str, Any]], bool]) -> None:
        """Ask until the answer is there; while the application is replaced, connections may fail."""

        def holds() -> bool:
            try:
                return bool(is_there(demo.call(address)[1]))
            except OSError:
                return False

        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{address}\n{demo.log_tail(self.service)()}"
            time.sleep(0.02)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Wait until `app dev --reload` serves what was saved before, and what the block saves."""
        reloads = 0
        while (now := self.wait_reloaded(after=reloads - 1)) != reloads:
            reloads = now
            time.sleep(1)  # a save may not be noticed at once
        yield
        self.wait_reloaded(after=reloads)

    def wait_reloaded(self, after: int) -> int:
        """Wait until there were more than `after` reloads, and the last is over; return their count."""
        deadline = time.monotonic() + SECONDS
        while True:
            log = self.log.read_text(errors="replace")
            count = log.count(RELOADING)
            if count > after and (count == 0 or RELOADED in log.rpartition(RELOADING)[2]):
                return count
            assert time.monotonic() < deadline, demo.log_tail(self.service)()
            time.sleep(0.1)

    def table(self) -> str:
        lines = [f"{'step':<44} {'seconds':>8} {'goal':>6}"]
        for step in self.steps:
            goal = "" if step.goal is None else f"{step.goal:g}"
            lines.append(f"{step.what:<44} {step.seconds:>8.1f} {goal:>6}")
        return "\n".join(lines)


def commands(title: str) -> list[str]:
    """Return the blocks of code in a section of the README."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.+?)\n```$", text, re.MULTILINE | re.DOTALL)


def main() -> int:
    (path,) = sys.argv[1:]
    folder = Path(path).resolve()
    folder.mkdir(parents=True)
    rendering.git(folder, "clone", "--quiet", str(ROOT), "clone")
    hour = FirstHour(folder / "clone", shell.environment())
    hour.record()
    print(f"\n{hour.table()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
