"""A way to PostgreSQL on which the answer to a COMMIT gets lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import URL, make_url

_COMMIT = b"COMMIT;\x00"
_HOST = "127.0.0.1"


class Cut(StrEnum):
    """The moment at which the client's connection is cut."""

    AFTER_COMMIT = "the server has committed"
    BEFORE_COMMIT = "COMMIT did not arrive, and the server notices the cut"
    SILENCE = "the server has committed, and the client hears nothing more"
    UNNOTICED = "COMMIT did not arrive, and the server does not notice the cut"


@dataclass
class LossyNetwork:
    """A proxy that cuts connections at the commits that `cuts` chooses."""

    target: URL
    cuts: Callable[[], Cut | None] = lambda: None
    made: list[Cut] = field(default_factory=list)
    stays_away: bool = False
    refused: int = 0
    port: int = 0
    _held: list[asyncio.StreamWriter] = field(default_factory=list)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        address = self.target.set(host=_HOST, port=self.port)
        return address.render_as_string(hide_password=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.made and self.stays_away:
            self.refused += 1
            writer.close()
            return
        answers, server = await asyncio.open_connection(self.target.host, self.target.port)
        back = asyncio.create_task(_copy(answers, writer))
        held = False
        try:
            while chunk := await reader.read(65536):
                cut = self.cuts() if chunk.endswith(_COMMIT) else None
                if cut is not None:
                    self.made.append(cut)
                    held = cut is Cut.UNNOTICED
                    back.cancel()
                    await asyncio.gather(back, return_exceptions=True)
                    if cut in {Cut.AFTER_COMMIT, Cut.SILENCE}:
                        server.write(chunk)
                        await answers.read(65536)
                    if cut is Cut.SILENCE:
                        await reader.read()  # until the client hangs up
                    return
                server.write(chunk)
                await server.drain()
        finally:
            back.cancel()
            writer.close()
            if held:
                self._held.append(server)
            else:
                server.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for server in self._held:
            server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def lossy_network(database_url: str) -> AsyncIterator[LossyNetwork]:
    """A way to the database at `database_url`, for the length of the block."""
    network = LossyNetwork(make_url(database_url))
    server = await asyncio.start_server(network.serve, _HOST, 0)
    network.port = server.sockets[0].getsockname()[1]
    try:
        yield network
    finally:
        server.close()
        network.close()
        await asyncio.gather(*network._tasks, return_exceptions=True)
