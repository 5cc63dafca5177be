"""Renderings, environments and servers, shared by all variants and all workers of one run.

Each is made once, below one folder, by the worker that needs it first; others wait for it. The run
that made the folder deletes it at its end.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import matrix, rendering
from tests.matrix import Variant
from tests.shell import environment

SERVERS = Path(__file__).with_name("shared_servers.py")
START_SECONDS = 300  # the first start downloads the broker
STOP_SECONDS = 60
# The entry point is read from pyproject.toml, since older versions have another.
APP_SCRIPT = """\
#!{python}
import os
import tomllib
from importlib import import_module
from pathlib import Path

project = tomllib.loads((Path(os.environ["PYTHONPATH"]) / "pyproject.toml").read_text())
module, _, name = project["project"]["scripts"]["app"].partition(":")
getattr(import_module(module), name)()
"""


class SetUpFailed(Exception):
    """An environment or the servers could not be made. The message has the output."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for a workspace. Servers in it stop with this process, however it ends.

    It is not below pytest's own folder, whose permissions each start of pytest resets: PostgreSQL,
    which root starts as another user, would be locked out.
    """
    with TemporaryDirectory(prefix="services-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        alive = folder / "alive"
        os.mkfifo(alive)
        held = os.open(alive, os.O_RDWR)
        try:
            yield folder
        finally:
            os.close(held)
            wait_until_stopped(folder / "servers.json")


def wait_until_stopped(addresses: Path) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while addresses.exists():
        if time.monotonic() > deadline:
            raise SetUpFailed(f"the servers in {addresses.parent} did not stop")
        time.sleep(0.1)


@dataclass(frozen=True)
class Workspace:
    folder: Path
    python: str

    def render(self, variant: Variant, repository: Path, folder: str = "") -> Path:
        folder = folder or variant.code
        service = self.folder / folder / "my-service"
        with self.locked(folder) as first:
            if first:
                rendering.render(repository, service, variant.answers)
        return service

    def sync_environment(self, service: Path) -> dict[str, str]:
        """Make the service's own environment, as its README says; return the variables for its commands."""
        with self.locked(f"{service.parent.name}-synced") as first:
            if first:
                self._sync(service)
        return {}

    def install(self, service: Path, group: str) -> None:
        """Add a group of this repository's pyproject.toml to the service's own environment."""
        source = f"{rendering.ROOT / 'pyproject.toml'}:{group}"
        python = service / ".venv" / "bin" / "python"
        result = subprocess.run(
            ("uv", "pip", "install", "--quiet", "--python", str(python), "--group", source),
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SetUpFailed(result.stderr)

    def shared_environment(self, service: Path) -> dict[str, str]:
        """Make or reuse the environment of all services with the same dependencies.

        The service itself is not installed there, but found by its path.
        """
        shared_environment = self.folder / f"environment-{dependency_hash(service)}"
        settings = {"UV_PROJECT_ENVIRONMENT": str(shared_environment)}
        with self.locked(shared_environment.name) as first:
            if first:
                self._sync(service, "--no-install-project", settings=settings)
                command = shared_environment / "bin" / "app"
                command.write_text(APP_SCRIPT.format(python=shared_environment / "bin" / "python"))
                command.chmod(0o755)
        return {**settings, "UV_NO_SYNC": "1", "PYTHONPATH": str(service)}

    def servers(self, repository: Path) -> dict[str, str]:
        """Return the addresses of PostgreSQL and Kafka for every variant.

        They are started by a rendering of their own: no process of a tested service may remain.
        """
        with self.locked("servers") as first:
            if first:
                service = self.render(matrix.codes()[0], repository, "servers-of-run")
                self._start_servers(service, self.shared_environment(service))
        found: dict[str, str] = json.loads((self.folder / "servers.json").read_text())
        return found

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Let one worker in at a time; yield whether it is the first."""
        done = self.folder / f"{name}.done"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield not done.exists()
            done.touch()

    def _sync(
        self, service: Path, *options: str, settings: Mapping[str, str] | None = None
    ) -> None:
        sync = ("uv", "sync", "--quiet", "--no-python-downloads", "--python", self.python)
        settings = {**environment(), **(settings or {})}
        result = subprocess.run(
            (*sync, *options),
            cwd=service,
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SetUpFailed(result.stderr)

    def _start_servers(self, service: Path, settings: Mapping[str, str]) -> None:
        log = self.folder / "servers.log"
        with log.open("w") as output:  # a pipe would stay open for as long as they serve
            result = subprocess.run(
                ("uv", "run", "--no-sync", "python", str(SERVERS), str(self.folder)),
                cwd=service,
                env={**environment(), **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=START_SECONDS,
                check=False,
            )
        if result.returncode != 0:
            raise SetUpFailed(f"the servers of the run did not start\n{log.read_text()}")


def dependency_hash(service: Path) -> str:
    """Return a short hash of the dependencies in pyproject.toml."""
    project = tomllib.loads((service / "pyproject.toml").read_text())
    wanted = [project["project"]["dependencies"], project["dependency-groups"]]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
