"""Where the servers of a running `app dev` are, for commands in the same folder."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.dev.process import started
from app.dev.servers import Servers

FILE = Path(".dev/servers.json")

# What the system tells of a process moves a little when its clock is set.
_CLOCK_SECONDS = 2.0


@contextmanager
def told(servers: Servers, file: Path = FILE) -> Iterator[None]:
    """Commands find `servers` for as long as the block lasts, or this process.

    Only what runs here is told: an address that was given may hold a password.
    """
    settings = {}
    if servers.postgres is not None:
        settings["database_url"] = servers.database_url
    if servers.broker_kind != "external":
        settings["kafka_bootstrap_servers"] = servers.kafka_bootstrap_servers
    process = os.getpid()
    file.parent.mkdir(exist_ok=True)  # nobody has, where both servers were given
    written = file.with_suffix(".new")
    written.write_text(
        json.dumps({"process": process, "started": started(process), "settings": settings}) + "\n"
    )
    written.replace(file)  # nobody reads half of it
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def of_running(file: Path = FILE) -> dict[str, str]:
    """Settings that lead to the servers of the `app dev` that runs here; none if none does.

    Raises DevelopmentDependencyMissing.
    """
    try:
        told = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    since = started(told["process"])
    # A process that was killed left its file behind; its id may be somebody else's by now.
    if since is None or abs(since - told["started"]) > _CLOCK_SECONDS:
        return {}
    settings: dict[str, str] = told["settings"]
    return settings
