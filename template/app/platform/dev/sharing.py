"""One Kafka for the services of a machine: the first `app dev` starts it, and the last one stops it.

The data is in the folder of one service, whoever starts the broker. No process owns the broker: a
service that uses it holds a lock, which the system releases even after `kill -9`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.platform.dev.errors import FolderInUse, JarsUnavailable, KafkaNotShared, ServerFailed
from app.platform.dev.folders import FileLock, private_folder
from app.platform.dev.kafka import PORTS_FILE, STOP_SECONDS, KafkaCluster
from app.platform.dev.process import remembered_ports
from app.platform.dev.servers import ADDRESSES, FOLDER, running_servers


def find_kafka(project: Path) -> Path:
    """Return the folder of the Kafka that the service in `project` uses. Raises KafkaNotShared."""
    platform = project / "app" / "platform"
    if not platform.is_dir():
        raise KafkaNotShared(
            f"there is no service in {project.resolve()}; name the folder of the one whose Kafka to use"
        )
    running = running_servers(project / ADDRESSES)
    is_older = not (platform / "dev" / "sharing.py").is_file()
    if is_older or (running is not None and "kafka" not in running):
        raise KafkaNotShared(
            f"the service in {project.resolve()} is of an older version of the template: update it first"
        )
    if running is None:
        return project / FOLDER / "kafka"
    if running["kafka"] is None:
        raise KafkaNotShared(
            f"`app dev` in {project.resolve()} runs without a Kafka of its own: with a mock broker, or "
            "with KAFKA_BOOTSTRAP_SERVERS, which can be set here, too"
        )
    return Path(running["kafka"])  # perhaps that of a third one


@dataclass(frozen=True)
class Sharer:
    """A service that uses a Kafka, with the folder of its project and the prefix of its groups."""

    name: str
    project: Path
    group_id: str

    def __str__(self) -> str:
        return f"{self.name} ({self.project})"


class Sharers:
    """The services that have topics on a Kafka: for each a file, and a lock while its `app dev` runs."""

    def __init__(self, folder: Path, me: Sharer) -> None:
        self._folder = folder
        self._me = me
        self._lock = self._lock_of(me.name)

    def enter(self) -> None:
        """Register this service as running. Raises FolderInUse and KafkaNotShared."""
        self._folder.mkdir(exist_ok=True)
        self._refuse_conflicts()
        if not self._lock.acquire():
            raise FolderInUse(
                f"`app dev` of this service runs already, as process {self._lock.holder}; stop that "
                "first"
            )
        file = self._file_of(self._me.name)
        incoming = file.with_suffix(".incoming")
        entry = {"project": str(self._me.project), "group_id": self._me.group_id}
        incoming.write_text(json.dumps(entry))
        incoming.replace(file)  # whole, or not at all

    def _refuse_conflicts(self) -> None:
        # The Kafka of a copied or moved project is its own, whatever the files say.
        is_own = self._folder.is_relative_to(self._me.project)
        for other in self.running() if is_own else self.others():
            conflicts = {
                "SERVICE_NAME": (f"topics of {other.name}", other.name == self._me.name),
                "KAFKA_GROUP_ID": (
                    f"consumer groups of {other.group_id}",
                    other.group_id == self._me.group_id,
                ),
            }
            for setting, (taken, is_conflict) in conflicts.items():
                if is_conflict:
                    raise KafkaNotShared(
                        f"the {taken} on this Kafka belong to the service {other}; services that "
                        f"share a Kafka need different values of {setting}"
                    )

    def leave(self) -> None:
        self._lock.release()

    def others(self) -> list[Sharer]:
        """Return the other services that have topics here, and whose projects still exist."""
        found = [self._read(file) for file in sorted(self._folder.glob("*.json"))]
        # An earlier name of this service is no other service.
        others = [sharer for sharer in found if sharer and sharer.project != self._me.project]
        return [sharer for sharer in others if sharer.project.is_dir()]

    def running(self) -> list[Sharer]:
        """Return those of the others whose `app dev` runs."""
        return [sharer for sharer in self.others() if self._runs(sharer.name)]

    def _runs(self, name: str) -> bool:
        lock = self._lock_of(name)
        if not lock.acquire():
            return True
        lock.release()
        return False

    def _read(self, file: Path) -> Sharer | None:
        try:
            entry = json.loads(file.read_text())
            return Sharer(file.stem, Path(entry["project"]), str(entry["group_id"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None  # a file that cannot be read says nothing, and is no reason not to start

    def _file_of(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _lock_of(self, name: str) -> FileLock:
        return FileLock(self._folder / f"{name}.lock")


class SharedKafka(KafkaCluster):
    """A broker on `data` that any number of services use.

    `fresh` deletes all data if no other service has topics here. Otherwise `must_clear` asks the
    caller to delete those of `me`.
    """

    def __init__(self, data: Path, me: Sharer, *, fresh: bool = False) -> None:
        super().__init__(data)
        self._mutex = FileLock(self.data / "sharing.lock")
        self._sharers = Sharers(self.data / "sharers", me)
        self._is_fresh = fresh
        self.is_guest = not self.data.is_relative_to(me.project)
        self.is_joined = False
        self.must_clear = False
        self.used_by: list[Sharer] = []

    def start(
        self, number: int | None = None, *, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Use the running broker, or start it. Raises KafkaNotShared, and what KafkaCluster raises."""
        private_folder(self.data)
        with self._mutex.waited_for(cancelled):
            self._sharers.enter()
            try:
                self.used_by = self._sharers.running()
                self.must_clear = self._is_fresh and (self.is_guest or bool(self._sharers.others()))
                self.is_joined = bool(self.used_by) and self._adopt()
                if not self.is_joined:
                    self._start_broker(number, cancelled)
            except BaseException:
                self._sharers.leave()
                raise

    def stop(
        self,
        number: int | None = None,
        *,
        timeout: float = STOP_SECONDS,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Stop the broker, unless another service uses it."""
        with self._mutex.waited_for(lambda: False):
            self._sharers.leave()
            self.used_by = self._sharers.running()
            if self.used_by:
                self._brokers[1].process.leave()
            else:
                super().stop(number, timeout=timeout, cancelled=cancelled)

    def _start_broker(self, number: int | None, cancelled: Callable[[], bool]) -> None:
        self._fresh = self._is_fresh and not self.must_clear
        try:
            super().start(number, cancelled=cancelled)
        except JarsUnavailable as error:
            if self.is_guest:
                raise ServerFailed(f"{error}; a mock broker cannot be shared") from error
            raise
        self._folder.release()  # from here on, the locks of its sharers say that it is in use

    def _adopt(self) -> bool:
        broker = self._brokers[1]
        broker.port = remembered_ports(self.data / PORTS_FILE)[0]
        return broker.process.adopt()
