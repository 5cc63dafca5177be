"""Sending for `app dlq replay` and `app dlq discard`."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer

from app.platform import telemetry
from app.platform.cli.dlq_outcomes import watching_replay
from app.platform.kafka.codec import Message
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.errors import BrokerUnavailable, SendError, TopicUnavailable
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.retry import discard_tombstone, replay_message
from app.platform.kafka.spans import as_attempt, resending
from app.platform.runtime import Context
from app.platform.terminal import say

_RETRY_SECONDS = 0.5

# The state of the letters after each operation.
_DONE = {"replay": "sent", "discard": "discarded"}

Build = Callable[[DeadLetter], Sequence[Message]]


def replay(
    context: Context,
    letters: Sequence[DeadLetter],
    to: str | None,
    rate: float | None,
    max_wait: float | None,
) -> None:
    """Send the letters back to their consumer, or `to` another; for up to `max_wait` s, await it.

    Exits with code 1 unless all of them are applied before the wait ends.
    """

    def build(letter: DeadLetter) -> Sequence[Message]:
        message = as_attempt(replay_message(letter.record, to))
        # With `to`, it is a message of the other consumer from now on.
        return [message] if to is None else [message, discard_tombstone(letter.record)]

    async def run() -> bool:
        if max_wait is None:
            await _send_all(context, letters, build, "replay", rate)
            return True
        async with watching_replay(context, letters, to) as watch:
            sent = await _send_all(context, letters, build, "replay", rate)
            outcome = await watch.wait(sent, max_wait)
        say(f"applied {outcome.applied}, failed again {outcome.failed}, pending {outcome.pending}")
        return outcome.applied == len(letters)

    with telemetry.for_command(), _one_line_errors():
        succeeded = asyncio.run(run())
    if not succeeded:
        raise typer.Exit(1)


def discard(context: Context, letters: Sequence[DeadLetter]) -> None:
    """Send the tombstones of the letters."""

    def build(letter: DeadLetter) -> Sequence[Message]:
        return [discard_tombstone(letter.record)]

    with telemetry.for_command(), _one_line_errors():
        asyncio.run(_send_all(context, letters, build, "discard"))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted", err=True)
        raise typer.Exit(130) from None
    except SendError as error:
        say(f"stopped: {error}", err=True)
        raise typer.Exit(1) from None


async def _send_all(
    context: Context,
    letters: Sequence[DeadLetter],
    build: Build,
    operation: str,
    rate: float | None = None,
) -> list[DeadLetter]:
    """Send the messages for each letter, and print the numbers; return the letters that were sent."""
    loop, done = asyncio.get_running_loop(), _DONE[operation]
    sent: list[DeadLetter] = []
    try:
        async with KafkaProducer(context.kafka).running() as producer:
            for letter in letters:
                started = loop.time()
                if await _send(context, producer, letter, build, operation):
                    sent.append(letter)
                    if rate is not None:
                        await asyncio.sleep(max(0.0, 1 / rate - (loop.time() - started)))
    finally:  # also when it is interrupted
        for consumer, count in sorted(Counter(letter.consumer for letter in sent).items()):
            say(f"{consumer or 'no consumer'}: {done} {count}")
        say(f"{done} {len(sent)} of {len(letters)}")
    return sent


async def _send(
    context: Context,
    producer: KafkaProducer,
    letter: DeadLetter,
    build: Build,
    operation: str,
) -> bool:
    """Send the messages for the letter; return False if they can never be sent."""
    try:
        with resending(operation, letter.record):
            for message in build(letter):
                await _send_with_retry(producer, message, context.kafka.kafka_send_timeout_seconds)
    except BrokerUnavailable:
        raise
    except (ValueError, SendError) as error:  # the other letters can still be sent
        say(f"skipped {letter.id}: {error}", err=True)
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
