"""Access to the console: its settings, and where it may listen."""

from ipaddress import ip_address, ip_network

from pydantic import Field, field_validator

from app.platform.config import ConfigurationError, EnvSettings
from app.platform.http.browser import FormToken

TOKEN = FormToken("console_token")


class ConsoleSettings(EnvSettings):
    """Settings of the console. Lists are separated by commas.

    `console_actions` allows replays, rebuilds and other changes. `console_processes` are the addresses of
    the processes to show (`http://worker:8001`). Values of `console_masked_fields` are hidden wherever a
    JSON body has a field of that name. `console_hosts` are further names under which a browser may
    open it. With `console_trusted_proxies` (addresses or networks), a request has to come from one of
    them, with the user's name in the header `console_user_header`.
    """

    console_actions: bool = False
    console_host: str = Field("127.0.0.1", min_length=1)
    console_processes: str = ""
    console_masked_fields: str = ""
    console_hosts: str = ""
    console_trusted_proxies: str = ""
    console_user_header: str = Field("X-Forwarded-User", pattern=r"^[A-Za-z0-9-]+$")

    @field_validator("console_trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for entry in listed(value):
            ip_network(entry)
        return value

    @field_validator("console_processes")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for entry in listed(value):
            if not entry.startswith(("http://", "https://")):
                raise ValueError(f"{entry} is no address: use http://HOST:PORT")
        return value


def listed(value: str) -> list[str]:
    """Return the entries of a list that is separated by commas."""
    return [entry for part in value.split(",") if (entry := part.strip())]


def check_host(host: str, settings: ConsoleSettings) -> None:
    """Raise ConfigurationError if everybody who reaches `host` could act."""
    if settings.console_actions and not settings.console_trusted_proxies and not _is_local(host):
        raise ConfigurationError(
            f"CONSOLE_ACTIONS=true on {host} would let everybody who reaches it act: set"
            " CONSOLE_TRUSTED_PROXIES to the proxy that authenticates people, or listen on 127.0.0.1"
        )


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
