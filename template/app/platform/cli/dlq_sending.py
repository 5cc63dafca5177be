"""Sending dead letters on: `app dlq replay` and `app dlq discard`."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import typer

from app.platform.kafka.codec import Message
from app.platform.kafka.dead_letters import DeadLetter
from app.platform.kafka.errors import BrokerUnavailable, SendError, TopicUnavailable
from app.platform.kafka.producer import KafkaProducer
from app.platform.kafka.retry import discard_tombstone, replay_message
from app.platform.runtime import Context
from app.platform.terminal import say

_REFUSED_SECONDS = 0.5


Messages = Callable[[DeadLetter], Sequence[Message]]


def replay_of(letter: DeadLetter, to: str | None) -> Sequence[Message]:
    if to is None:
        return [replay_message(letter.record)]
    # It is the other consumer's now: what becomes of it is to be seen there.
    return [replay_message(letter.record, to), discard_tombstone(letter.record)]


def send(
    context: Context,
    letters: Sequence[DeadLetter],
    made: Messages,
    done: str,
    rate: float | None = None,
) -> None:
    """Send what is `made` of each letter, and say of how many that is `done`."""
    sent = Counter[str]()
    try:
        asyncio.run(_send_each(context, letters, made, rate, sent))
    except KeyboardInterrupt:
        say("interrupted", err=True)
        raise typer.Exit(130) from None
    except SendError as reason:
        say(f"stopped: {reason}", err=True)
        raise typer.Exit(1) from None
    finally:
        for name, count in sorted(sent.items()):
            say(f"{name or 'no consumer'}: {done} {count}")
        say(f"{done} {sent.total()} of {len(letters)}")


async def _send_each(
    context: Context,
    letters: Sequence[DeadLetter],
    made: Messages,
    rate: float | None,
    sent: Counter[str],
) -> None:
    loop = asyncio.get_running_loop()
    timeout = context.kafka.kafka_send_timeout_seconds
    async with KafkaProducer(context.kafka).running() as producer:
        for letter in letters:
            started = loop.time()
            try:
                messages = made(letter)
            except ValueError as reason:
                say(f"skipped: {reason}", err=True)
                continue
            try:
                for message in messages:
                    await _send_patiently(producer, message, timeout)
            except BrokerUnavailable:
                raise
            except SendError as reason:  # this one's own fault: the others can still go
                say(f"skipped {letter.id}: {reason}", err=True)
                continue
            sent[letter.consumer] += 1
            if rate is not None:
                await asyncio.sleep(max(0.0, 1 / rate - (loop.time() - started)))


async def _send_patiently(producer: KafkaProducer, message: Message, seconds: float) -> None:
    """Send `message`; what its topic refuses for now is sent again for up to `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await producer.send(message)
        except TopicUnavailable:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(_REFUSED_SECONDS)
