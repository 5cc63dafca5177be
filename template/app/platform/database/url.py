"""DATABASE_URL: libpq's connection URI, for asyncpg.

asyncpg passes unknown parameters to the server, which refuses the connection. So each parameter is
supported here, or refused by name.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_EXAMPLE = "use postgresql://user:password@host:5432/database"

# Parameters that asyncpg reads from the URL (connect_utils.py), or that belong to the start-up packet
# (options, application_name).
_SUPPORTED = {
    "application_name",
    "dbname",
    "gsslib",
    "host",
    "krbsrvname",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
    "user",
}
_FILE_PARAMETERS = ("sslcert", "sslcrl", "sslkey", "sslrootcert")
_ALLOWED_VALUES = {
    "sslmode": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
    "sslnegotiation": ["postgres", "direct"],
    "target_session_attrs": ["any", "primary", "read-write"],  # the service writes
}
_TLS_VERSIONS = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]

_KEEP_ALIVE = (
    "the driver does not set it; DATABASE_COMMAND_TIMEOUT_SECONDS detects a host that disappeared"
)
_NOT_SUPPORTED = "the driver does not support it"
# Parameters of libpq that asyncpg does not have: the values that match its behaviour, and the reason
# why others are refused.
_UNSUPPORTED: Mapping[str, tuple[list[str], str]] = {
    "channel_binding": (
        ["disable", "prefer"],
        "the driver cannot bind channels; use prefer, with sslmode=verify-full",
    ),
    "client_encoding": (["utf8", "UTF8", "utf-8", "UTF-8"], "the driver speaks UTF-8 only"),
    "gssdelegation": (["0"], _NOT_SUPPORTED),
    "gssencmode": (["disable", "prefer"], _NOT_SUPPORTED),
    "hostaddr": ([], "the driver does not support it; give the address as host"),
    "keepalives": (["0"], _KEEP_ALIVE),
    "keepalives_count": ([], _KEEP_ALIVE),
    "keepalives_idle": ([], _KEEP_ALIVE),
    "keepalives_interval": ([], _KEEP_ALIVE),
    "load_balance_hosts": (["disable"], _NOT_SUPPORTED),
    "max_protocol_version": (["3.0", "3.2", "latest"], _NOT_SUPPORTED),
    "min_protocol_version": (["3.0"], _NOT_SUPPORTED),
    "oauth_client_id": ([], _NOT_SUPPORTED),
    "oauth_client_secret": ([], _NOT_SUPPORTED),
    "oauth_issuer": ([], _NOT_SUPPORTED),
    "oauth_scope": ([], _NOT_SUPPORTED),
    "replication": (["0", "false", "no", "off"], "the service does not replicate"),
    "require_auth": ([], _NOT_SUPPORTED),
    "requirepeer": ([], _NOT_SUPPORTED),
    "requiressl": (["0"], "use sslmode=require"),
    "scram_client_key": ([], _NOT_SUPPORTED),
    "scram_server_key": ([], _NOT_SUPPORTED),
    "servicefile": ([], "the driver reads it from the variable PGSERVICEFILE"),
    "sslcertmode": (["allow"], _NOT_SUPPORTED),
    "sslcompression": (["0"], _NOT_SUPPORTED),
    "sslcrldir": ([], "the driver does not support it; use sslcrl"),
    "sslkeylogfile": ([], "the driver reads it from the variable SSLKEYLOGFILE"),
    "sslsni": (["1"], _NOT_SUPPORTED),
    "tcp_user_timeout": (["0"], _KEEP_ALIVE),
}


@dataclass(frozen=True)
class DatabaseAddress:
    """A parsed DATABASE_URL: `url` for SQLAlchemy; `dsns` for asyncpg, one per host, in order."""

    url: URL
    dsns: list[str]
    connect_seconds: float | None

    @property
    def hosts(self) -> str:
        """The hosts, for messages."""
        host = self.url.query.get("host") or self.url.host or "a local socket"
        return host if isinstance(host, str) else ",".join(host)


def async_url(database_url: str) -> URL:
    """Return `database_url` for SQLAlchemy. Raises ValueError as `parse_database_url` does."""
    return parse_database_url(database_url).url


def parse_database_url(database_url: str) -> DatabaseAddress:
    """Parse a PostgreSQL URL. Raises ValueError for another URL, and for unsupported parameters; the
    message names the parameter, and does not repeat the URL."""
    url = _split_hosts(database_url)
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError("only PostgreSQL is supported; use postgresql://…")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError(f"a port is from 1 to 65535; {_EXAMPLE}")
    given = {name: _last_value(name, value) for name, value in url.query.items()}
    query = _asyncpg_query({name: value for name, value in given.items() if value})
    libpq = url.set(drivername="postgresql", query=query)
    return DatabaseAddress(
        url.set(drivername="postgresql+asyncpg"),
        [each.render_as_string(hide_password=False) for each in _urls_by_host(libpq, query)],
        _connect_timeout(given.get("connect_timeout")),
    )


def _split_hosts(database_url: str) -> URL:
    """Move several hosts into the parameter `host`, where SQLAlchemy and asyncpg expect them."""
    several = re.fullmatch(
        r"([^:/?#]+://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([/?].*)?", database_url, re.DOTALL
    )
    start, hosts, rest = several.groups("") if several else (database_url, "", "")
    try:
        url = make_url(start + rest)
    except (ArgumentError, ValueError):  # ValueError quotes a wrong port
        raise ValueError(f"not a URL; {_EXAMPLE}") from None
    return url.update_query_dict({"host": hosts.split(",")}) if hosts else url


def _last_value(name: str, value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    return ",".join(value) if name == "host" else value[-1]


def _asyncpg_query(given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters for asyncpg. Raises ValueError for those that it cannot follow."""
    query = {}
    for name, value in given.items():
        if name == "ssl":  # SQLAlchemy's name of it
            query["sslmode"] = value
        elif name == "fallback_application_name":
            query.setdefault("application_name", value)
        elif name in _SUPPORTED:
            query[name] = value
        elif name in _UNSUPPORTED:
            harmless, why = _UNSUPPORTED[name]
            if value not in harmless:
                raise ValueError(f"the parameter {name} cannot be {_displayed(name, value)}: {why}")
        elif name != "connect_timeout":
            raise ValueError(
                f"libpq has no parameter {name}; give a setting of the server as"
                " options=-c%20name=value"
            )
    _check_values(query)
    _check_files(query)
    return query


def _displayed(name: str, value: str) -> str:
    return "given" if name.startswith(("oauth", "scram")) else value


def _check_values(query: Mapping[str, str]) -> None:
    for name, allowed in _ALLOWED_VALUES.items():
        if name in query and query[name] not in allowed:
            raise ValueError(f"the parameter {name} is one of {', '.join(allowed)}")
    for name in ("ssl_min_protocol_version", "ssl_max_protocol_version"):
        if name in query and query[name] not in _TLS_VERSIONS:
            raise ValueError(f"the parameter {name} is one of {', '.join(_TLS_VERSIONS)}")


def _check_files(query: Mapping[str, str]) -> None:
    for name in _FILE_PARAMETERS:
        if name in query:
            try:
                Path(query[name]).open("rb").close()
            except OSError as error:
                raise ValueError(f"the file of {name} cannot be read: {error.strerror}") from None
    if query.get("sslmode", "").startswith("verify-") and "sslrootcert" not in query:
        elsewhere = Path("~/.postgresql/root.crt").expanduser()
        if "PGSSLROOTCERT" not in os.environ and not elsewhere.is_file():
            raise ValueError(f"sslmode={query['sslmode']} needs sslrootcert=FILE")


def _urls_by_host(url: URL, query: Mapping[str, str]) -> list[URL]:
    """Return a URL for each host, because asyncpg has one time-out for all hosts of a URL."""
    if "host" not in query:
        return [url]
    hosts = query["host"].split(",")
    ports = query["port"].split(",") if "port" in query else [""]
    if len(ports) not in {1, len(hosts)}:
        raise ValueError("the parameter port has one port for all hosts, or one for each")
    urls = []
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        found = re.fullmatch(r"(/[^:]*|\[[^]]+\]|[^:/[\]]+)(?::([0-9]{1,5}))?", host)
        written = (found and found[2]) or port or "5432"
        if found is None or not written.isdecimal() or not 1 <= int(written) <= 65535:
            raise ValueError(f"several hosts are written host:port,host:port; {_EXAMPLE}")
        each = {**query, "host": found[1], "port": written}  # libpq prefers these to the URL's own
        urls.append(
            URL.create(url.drivername, url.username, url.password, None, None, url.database, each)
        )
    return urls


def _connect_timeout(connect_timeout: str | None) -> float | None:
    if connect_timeout is None:
        return None
    if not connect_timeout.isdecimal() or int(connect_timeout) < 1:
        raise ValueError("the parameter connect_timeout is a number of seconds, at least 1")
    return float(connect_timeout)
