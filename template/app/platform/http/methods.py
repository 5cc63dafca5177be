"""HTTP methods: HEAD for every GET route, and the methods that a path allows."""

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SET_BY_ROUTERS = {"route", "fastapi"}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class HeadAsGet:
    """A middleware that answers HEAD as GET, without the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_without_body)
        finally:  # metrics need the route, which a router sets
            scope.update({name: as_get[name] for name in _SET_BY_ROUTERS & as_get.keys()})


def allowed_methods(routes: list[BaseRoute], scope: Scope) -> list[str]:
    """List the methods of all routes for the path of `scope`, for the header `Allow`."""
    request = {name: scope[name] for name in ("type", "path", "root_path", "headers")}
    found = [
        method
        for method in _METHODS
        if any(route.matches({**request, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["HEAD", *found] if "GET" in found else found
