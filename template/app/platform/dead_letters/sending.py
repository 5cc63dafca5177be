"""Replaying and discarding dead letters."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from app.platform.database.engine import Database
from app.platform.dead_letters.outcomes import Outcome, watching_replay
from app.platform.kafka.codec import Message
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.errors import BrokerUnavailable, SendError, TopicUnavailable
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.retry import discard_tombstone, replay_message
from app.platform.kafka.spans import as_attempt, resending
from app.platform.runtime import Context

_RETRY_SECONDS = 0.5

Build = Callable[[DeadLetter], Sequence[Message]]


class Progress:
    """The progress of a replay or a discard of `letters`, for others to read while it runs.

    A subclass is notified by the methods that begin with `on_`.
    """

    def __init__(self, letters: Sequence[DeadLetter]) -> None:
        self.letters = letters
        self.sent: list[DeadLetter] = []
        self.skipped: list[tuple[DeadLetter, str]] = []  # each with the reason
        self.outcome: Outcome | None = None  # of those that were sent, if it is awaited

    def on_sent(self, letter: DeadLetter) -> None:
        """Called for each letter that Kafka has confirmed."""

    def on_skipped(self, letter: DeadLetter, reason: str) -> None:
        """Called for each letter that can never be sent, so that the others still are."""

    def on_sending_ended(self) -> None:
        """Called when no more letters are sent: after the last one, an error or a cancellation."""

    def report(self, outcome: Outcome) -> None:
        """Called with the outcome so far while it is awaited, and at the end of the wait."""
        self.outcome = outcome

    def summary(self, done: str) -> list[str]:
        """Say how many letters were sent, by consumer and in all. `done` is their state after it."""
        counts = Counter(letter.consumer for letter in self.sent)
        lines = [f"{name or 'no consumer'}: {done} {n}" for name, n in sorted(counts.items())]
        return [*lines, f"{done} {len(self.sent)} of {len(self.letters)}"]


async def replay(
    context: Context,
    database: Database,
    progress: Progress,
    to: str | None = None,
    rate: float | None = None,
    max_wait: float | None = None,
) -> None:
    """Send the letters back to their consumer, or `to` another; for up to `max_wait` s, await it.

    `rate` is the maximum of letters a second. Raises SendError, such as BrokerUnavailable.
    """

    def build(letter: DeadLetter) -> Sequence[Message]:
        message = as_attempt(replay_message(letter.record, to))
        # With `to`, it is a message of the other consumer from now on.
        return [message] if to is None else [message, discard_tombstone(letter.record)]

    if max_wait is None:
        await _send_all(context, progress, build, "replay", rate)
        return
    async with watching_replay(context, progress.letters, to) as watch:
        await _send_all(context, progress, build, "replay", rate)
        progress.report(await watch.wait(database, progress.sent, max_wait, progress.report))


async def discard(context: Context, progress: Progress) -> None:
    """Send the tombstones of the letters. Raises SendError, such as BrokerUnavailable."""

    def build(letter: DeadLetter) -> Sequence[Message]:
        return [discard_tombstone(letter.record)]

    await _send_all(context, progress, build, "discard")


async def _send_all(
    context: Context,
    progress: Progress,
    build: Build,
    operation: str,
    rate: float | None = None,
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with KafkaProducer(context.kafka).running() as producer:
            for letter in progress.letters:
                started = loop.time()
                if await _send(context, producer, letter, build, operation, progress):
                    progress.sent.append(letter)
                    progress.on_sent(letter)
                    if rate is not None:
                        await asyncio.sleep(max(0.0, 1 / rate - (loop.time() - started)))
    finally:  # also when it is interrupted
        progress.on_sending_ended()


async def _send(
    context: Context,
    producer: KafkaProducer,
    letter: DeadLetter,
    build: Build,
    operation: str,
    progress: Progress,
) -> bool:
    """Send the messages for the letter; return False if they can never be sent."""
    try:
        with resending(operation, letter.record):
            for message in build(letter):
                await _send_with_retry(producer, message, context.kafka.kafka_send_timeout_seconds)
    except BrokerUnavailable:
        raise
    except (ValueError, SendError) as error:  # the other letters can still be sent
        progress.skipped.append((letter, str(error)))
        progress.on_skipped(letter, str(error))
        return False
    return True


async def _send_with_retry(producer: KafkaProducer, message: Message, seconds: float) -> None:
    """Send `message`, and retry temporary refusals of its topic for up to `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await producer.send(message)
        except TopicUnavailable:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)
