"""The outcomes of dead letters: which were applied, and which of the replayed ones failed again."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer

from app.platform.database.engine import Database
from app.platform.kafka import inbox
from app.platform.kafka.admin import POLL_SECONDS, reading, seek_to
from app.platform.kafka.dead_letters import DeadLetter, Identity, decoder_of, inbox_id
from app.platform.kafka.topics import dead_letter_topic
from app.platform.runtime import Context


async def find_applied(
    database: Database, context: Context, letters: Collection[DeadLetter], to: str | None = None
) -> set[Identity]:
    """Return the letters whose events the inbox has, for their consumer or the one they go `to`."""
    found: set[Identity] = set()
    async with database.sessions() as session:
        for consumer in {letter.consumer for letter in letters}:
            those = [letter for letter in letters if letter.consumer == consumer]
            for name in {consumer, to or consumer}:
                decoder = decoder_of(name, context.registry, context.subscriptions)
                ids = [inbox_id(letter, decoder) for letter in those]
                applied = await inbox.applied(session, name, [id for id in ids if id])
                pairs = zip(those, ids, strict=True)
                found |= {letter.identity for letter, id in pairs if id in applied}
    return found


@dataclass(frozen=True)
class Outcome:
    """The numbers of replayed letters by their outcome."""

    applied: int
    failed: int
    pending: int

    def __str__(self) -> str:
        return f"applied {self.applied}, failed again {self.failed}, pending {self.pending}"


class ReplayWatch:
    """A view of the dead letter topics, from the moment before a replay."""

    def __init__(self, client: AIOKafkaConsumer, context: Context, to: str | None) -> None:
        self._client = client
        self._context = context
        self._to = to

    async def wait(
        self,
        database: Database,
        letters: Sequence[DeadLetter],
        seconds: float,
        report: Callable[[Outcome], None] = lambda _: None,
    ) -> Outcome:
        """Wait for the outcome of each replayed letter, for up to `seconds`; `report` it so far."""
        pending = {self._identity_after(letter): letter for letter in letters}
        deadline = time.monotonic() + seconds
        failed = 0
        while pending and time.monotonic() < deadline:
            for letter in await self._new_letters():
                before = pending.get(letter.identity)
                if before is not None and letter.replays > before.replays:
                    failed += 1
                    del pending[letter.identity]
            applied = await find_applied(database, self._context, pending.values(), self._to)
            for identity, letter in list(pending.items()):
                if letter.identity in applied:
                    del pending[identity]
            report(Outcome(len(letters) - failed - len(pending), failed, len(pending)))
        return Outcome(len(letters) - failed - len(pending), failed, len(pending))

    def _identity_after(self, letter: DeadLetter) -> Identity:
        return letter.identity._replace(consumer=self._to or letter.consumer)

    async def _new_letters(self) -> list[DeadLetter]:
        fetched = await self._client.getmany(timeout_ms=int(POLL_SECONDS * 1000))
        return [DeadLetter.of(record) for records in fetched.values() for record in records]


@asynccontextmanager
async def watching_replay(
    context: Context, letters: Sequence[DeadLetter], to: str | None
) -> AsyncIterator[ReplayWatch]:
    """Open a watch for the length of the block. Raises BrokerUnavailable."""
    topics = {dead_letter_topic(letter.origin, to or letter.consumer) for letter in letters}
    async with reading(context.kafka, sorted(topics)) as client:
        if client.assignment():
            await seek_to(client, from_beginning=False)
        yield ReplayWatch(client, context, to)
