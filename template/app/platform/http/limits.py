"""Limits on request bodies: size, and time to arrive."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.platform.config import HttpSettings
from app.platform.errors import ServiceError
from app.platform.http.problems import error_response

# Closing a connection with unread bytes resets it, and the client may lose the response.
_LINGER_SECONDS = 2


class BodyTooLarge(ServiceError):
    status = 413
    title = "The body is too large"


class BodyTimeout(ServiceError):
    status = 408
    title = "The body did not arrive in time"


class BodyLimits:
    """A middleware that receives the whole body before the application runs.

    It rejects a body that is too large or too slow, and closes the connection.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._max_bytes = settings.http_max_body_bytes
        self._timeout = settings.http_body_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (length := _declared_length(scope)) == 0:
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._receive_body(length, receive)
        except TimeoutError:
            slow = BodyTimeout(f"the whole body must arrive within {self._timeout:g} s")
            await _reject(slow, scope, receive, send)
        except BodyTooLarge as error:
            await _reject(error, scope, receive, send)
        else:
            await self._app(scope, _Replay(body, receive), send)

    async def _receive_body(self, length: int | None, receive: Receive) -> Message:
        """Return the body as one message. Raises BodyTooLarge once the limit is exceeded."""
        size, body, more_body = length or 0, bytearray(), True
        while more_body and size <= self._max_bytes:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                break
            body += message.get("body", b"")
            more_body = message.get("more_body", False)
            size = max(size, len(body))
        if size > self._max_bytes:
            raise BodyTooLarge(f"a body may have at most {self._max_bytes} bytes")
        return {"type": "http.request", "body": bytes(body), "more_body": more_body}


class _Replay:
    """A `receive` that returns the received body first, and then the server's messages."""

    def __init__(self, body: Message, receive: Receive) -> None:
        self._body: Message | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return body


def _declared_length(scope: Scope) -> int | None:
    """Return the length of the body: 0 if there is none, None if it is not known in advance."""
    length: int | None = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value) if value.isdigit() else None
    return length


async def _reject(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Respond at once, and close the connection after the client has read the response."""
    response = error_response(scope, error)
    response.headers["Connection"] = "close"
    start = {"type": "http.response.start", "status": response.status_code}
    await send({**start, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    # The client has a complete response by its Content-Length; the connection stays open a moment.
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await _discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
