"""Access to the console: who may see it, who may act, and what a browser may do with its pages."""

import hmac
import secrets
from collections.abc import Iterable
from http.cookies import SimpleCookie
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.platform.config import ConfigurationError, EnvSettings

COOKIE = "console_token"
NOBODY = "anonymous"
MOST_FORM_BYTES = 1_000_000

# Nothing from other hosts, no script but the console's own file, no frames, no forms to elsewhere.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


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


class Guard:
    """A middleware that admits requests, and sets the headers of security on every response.

    Without trusted proxies, the name in the address bar has to be an IP address, localhost or one of
    `console_hosts`: the page of another site cannot make its own name lead here.
    """

    def __init__(self, app: ASGIApp, settings: ConsoleSettings) -> None:
        self._app = app
        self._user_header = settings.console_user_header
        self._hosts = {"localhost", *listed(settings.console_hosts)}
        self._proxies = [ip_network(entry) for entry in listed(settings.console_trusted_proxies)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        is_probe = scope["path"].startswith("/health/")
        refusal = None if is_probe else self._refusal(scope, headers)
        if refusal is not None:
            await PlainTextResponse(f"{refusal}\n", 403)(scope, receive, send_with_headers)
            return
        if b"%00" in scope["query_string"]:  # PostgreSQL's texts have none
            answer = PlainTextResponse("a query has no NUL characters: leave %00 out\n", 400)
            await answer(scope, receive, send_with_headers)
            return
        scope.setdefault("state", {})["actor"] = self._actor(headers)
        await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> str | None:
        if self._proxies:
            peer = (scope.get("client") or ("",))[0]
            if not _is_in(peer, self._proxies):
                return (
                    f"requests from {peer or 'an unknown address'} are not admitted: use the proxy"
                )
            if not headers.get(self._user_header):
                return f"the proxy sent no {self._user_header}: it has to name the user"
            return None
        host = _host_of(headers)
        if host in self._hosts or _is_address(host):
            return None
        return f"the host {host!r} is not admitted: add it to CONSOLE_HOSTS"

    def _actor(self, headers: Headers) -> str:
        return (self._proxies and headers.get(self._user_header)) or NOBODY


def _host_of(headers: Headers) -> str:
    """Return the name or address in the browser's address bar, without its port."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # half a pair of brackets
        return ""


def _is_in(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return _is_address(address) and any(ip_address(address) in each for each in networks)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# Actions


def token_of(request: Request) -> str:
    """Return the token of this browser for forms; a new one if it has none."""
    if COOKIE in request.cookies:
        return request.cookies[COOKIE]
    if not hasattr(request.state, "token"):
        request.state.token = secrets.token_urlsafe(24)
    token: str = request.state.token
    return token


def cookie_of(request: Request) -> str | None:
    """Return the value of Set-Cookie that gives this browser its token; None if it has it."""
    if COOKIE in request.cookies:
        return None
    cookie = SimpleCookie({COOKIE: token_of(request)})
    morsel = cookie[COOKIE]
    morsel["httponly"], morsel["samesite"], morsel["path"] = True, "Strict", "/"
    return morsel.OutputString()


async def read_form(request: Request, settings: ConsoleSettings) -> dict[str, str]:
    """Return the fields of a form that asks for an action.

    Raises HTTPException 403 where actions are off and for a form of another site, 413 for a large
    one, 400 for one with NUL characters.
    """
    if not settings.console_actions:
        raise HTTPException(403, "this console is read-only: CONSOLE_ACTIONS=true allows actions")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM_BYTES:
            raise HTTPException(413, f"a form has at most {MOST_FORM_BYTES} bytes")
    if b"%00" in body:
        raise HTTPException(400, "a form has no NUL characters")
    fields = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    expected, given = request.cookies.get(COOKIE, ""), fields.pop("token", "")
    if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
        raise HTTPException(403, "the form has expired: go back, reload the page, and try again")
    return fields
