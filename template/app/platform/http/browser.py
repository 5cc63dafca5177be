"""Pages in browsers: who is admitted, the policy of their content, and the fields of URLs and forms."""

import hmac
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOBODY = "anonymous"
MOST_FORM_BYTES = 1_000_000

# Nothing from other hosts, no script but the pages' own files, no frames, no forms to elsewhere.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """A middleware that admits requests, and sets the headers of security on every response.

    With `proxies` (addresses or networks), a request has to come from one of them, with the user's name
    in the header `user_header`. Without, the name in the address bar has to be an IP address, localhost
    or one of `hosts`: the page of another site cannot make its own name lead here. `hosts_setting` is
    the setting that a refusal names.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        hosts_setting: str,
        proxies: Iterable[str],
        user_header: str,
    ) -> None:
        self._app = app
        self._user_header = user_header
        self._hosts, self._hosts_setting = {"localhost", *hosts}, hosts_setting
        self._proxies = [ip_network(entry) for entry in proxies]

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
        return f"the host {host!r} is not admitted: add it to {self._hosts_setting}"

    def _actor(self, headers: Headers) -> str:
        return (self._proxies and headers.get(self._user_header)) or NOBODY


def _host_of(headers: Headers) -> str:
    """Return the name or address in the browser's address bar, without its port."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # half a pair of brackets
        return ""


def _is_in(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    return _is_address(address) and any(ip_address(address) in each for each in networks)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class Fields(dict[str, str]):
    """Those fields of a URL or a form that are not empty.

    Values of the wrong form raise HTTPException 400.
    """

    @classmethod
    def of(cls, given: Mapping[str, str], *names: str) -> "Fields":
        return cls({name: text for name in names if (text := given.get(name))})

    def number(self, name: str) -> int | None:
        """Return the number in a field; None without one."""
        text = self.get(name)
        if text and not (text.isascii() and text.isdigit() and len(text) < 19):
            raise HTTPException(400, f"{name} {text!r} is no number: use digits")
        return int(text) if text else None

    def time(self, name: str) -> datetime | None:
        """Return the time in a field, in UTC unless it says; None without one."""
        text = self.get(name)
        try:
            time = datetime.fromisoformat(text) if text else None
        except ValueError:
            raise HTTPException(400, f"{text!r} is no time: use 2030-12-31T23:59:59") from None
        return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time

    def but(self, **changes: str | None) -> "Fields":
        """Return the fields with `changes`; None removes one."""
        return Fields({k: v for k, v in {**self, **changes}.items() if v is not None})

    def url(self, **changes: str | None) -> str:
        """Return the part of a URL after the question mark, with `changes`."""
        return urlencode(self.but(**changes))

    def choice(self, name: str, choices: Collection[str]) -> str:
        """Return the value of a field that has one of `choices`. Raises HTTPException 400."""
        value = self.get(name, "")
        if value not in choices:
            raise HTTPException(400, f"there is no {name} {value!r}")
        return value


class FormToken:
    """The token that forms carry and that the cookie `name` repeats: another site knows neither."""

    def __init__(self, name: str) -> None:
        self.name = name

    def of(self, request: Request) -> str:
        """Return the token of this browser; a new one if it has none."""
        if self.name in request.cookies:
            return request.cookies[self.name]
        if not hasattr(request.state, "token"):
            request.state.token = secrets.token_urlsafe(24)
        token: str = request.state.token
        return token

    def cookie(self, request: Request) -> str | None:
        """Return the value of Set-Cookie that gives this browser its token; None if it has it."""
        if self.name in request.cookies:
            return None
        cookie = SimpleCookie({self.name: self.of(request)})
        morsel = cookie[self.name]
        morsel["httponly"], morsel["samesite"], morsel["path"] = True, "Strict", "/"
        return morsel.OutputString()

    async def read_form(self, request: Request) -> Fields:
        """Return the fields of a form besides the token.

        Raises HTTPException 403 for a form of another site, 413 for a large one, 400 for one with NUL
        characters.
        """
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_FORM_BYTES:
                raise HTTPException(413, f"a form has at most {MOST_FORM_BYTES} bytes")
        if b"%00" in body:
            raise HTTPException(400, "a form has no NUL characters")
        fields = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        expected, given = request.cookies.get(self.name, ""), fields.pop("token", "")
        if not expected or not hmac.compare_digest(expected.encode(), given.encode()):
            raise HTTPException(403, "the form has expired: go back, reload it, and try again")
        return Fields.of(fields, *fields)
