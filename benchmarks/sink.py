"""A sink for OTLP over HTTP, in a process of its own: python sink.py PORT

It reads the spans of every POST, and drops them. A GET of a path returns the number of POSTs below it.
"""

import asyncio
import sys
from collections import Counter


class Sink:
    """The number of requests that brought spans, by the path before `/v1/traces`."""

    def __init__(self) -> None:
        self._posted: Counter[bytes] = Counter()

    async def serve(self, port: int) -> None:
        async with await asyncio.start_server(self._answer, "127.0.0.1", port) as server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                method, path, _ = head.split(b" ", 2)
                if method == b"POST":
                    self._posted[path.removesuffix(b"/v1/traces")] += 1
                said = b"" if method == b"POST" else b"%d" % self._posted[path]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            writer.close()


if __name__ == "__main__":
    asyncio.run(Sink().serve(int(sys.argv[1])))
