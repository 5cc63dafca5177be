"""Dead letters: `app dlq …`."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from aiokafka import ConsumerRecord

from app.commands import Context, counted, failure, on_database, unknown
from app.commands.events import one_line
from app.commands.events import show as show_record
from app.database import Database
from app.kafka import inbox
from app.kafka.codec import Message
from app.kafka.dlq import (
    DeadLetter,
    Filter,
    Identity,
    dead_letter_topics,
    is_readable,
    newest,
    read,
)
from app.kafka.errors import BrokerUnavailable, SendError
from app.kafka.producer import KafkaProducer
from app.kafka.retry import discarded, replayed
from app.terminal import printable, say, say_block

commands = typer.Typer()
group = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)
commands.add_typer(group, name="dlq")

TIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

ConsumerName = Annotated[str | None, typer.Option("--consumer", help="Only of this consumer.")]
TopicName = Annotated[str | None, typer.Option("--topic", help="Only from this topic.")]
ErrorType = Annotated[
    str | None, typer.Option("--error", help="Only with this error type, such as ValueError.")
]
Key = Annotated[str | None, typer.Option("--key", help="Only with this message key.")]
Since = Annotated[
    datetime | None, typer.Option("--since", formats=TIME_FORMATS, help="Failed since (UTC).")
]
Until = Annotated[
    datetime | None, typer.Option("--until", formats=TIME_FORMATS, help="Failed before (UTC).")
]
Undecodable = Annotated[
    bool, typer.Option("--undecodable", help="Only what this version of the service cannot read.")
]


@group.command("list")
def list_letters(
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    undecodable: Undecodable = False,
) -> None:
    """Show the dead letters, one a line, and whether their events were applied since."""
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    letters, applied = asyncio.run(_find(Context.from_environment(), only, undecodable))
    for letter in letters:
        say(_line(letter, letter.identity in applied))
    say(_summary(letters, applied))


@group.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="As `app dlq list` prints it.")],
) -> None:
    """Show one dead letter: headers, body, and the error that brought it here."""
    context = Context.from_environment()
    letter = asyncio.run(_find_one(context, letter_id))
    say_block(show_record(letter.record))


@group.command()
def replay(
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    undecodable: Undecodable = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be replayed, and do nothing.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="At most so many messages a second.", min=0.001)
    ] = None,
) -> None:
    """Send dead letters back to the consumer that they failed in, with their event ids.

    Safe to interrupt and to repeat: what has been applied is skipped, here and by the inbox. What
    this version of the service cannot read would only come back: it needs --undecodable.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = Context.from_environment()
    letters, applied = asyncio.run(_find(context, only, undecodable))
    waiting = [letter for letter in letters if letter.identity not in applied]
    todo = [x for x in waiting if undecodable or is_readable(x, context.registry)]
    say(_summary(letters, applied))
    if len(todo) < len(waiting):
        say(_left_out(len(waiting) - len(todo)))
    if dry_run:
        for letter in todo:
            say(f"would replay {_line(letter, False)}")
        return
    _send(context, todo, replayed, "replayed", rate)


@group.command()
def discard(
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    undecodable: Undecodable = False,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be discarded, and do nothing.")
    ] = False,
) -> None:
    """Give dead letters up: they are not listed and not replayed any more.

    Kafka keeps their bytes for as long as all dead letters; `app dlq show` finds them by their ids.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    if only == Filter() and not (undecodable or every):
        raise failure("say which dead letters: --undecodable, --error, … or --all")
    context = Context.from_environment()
    letters, applied = asyncio.run(_find(context, only, undecodable))
    say(_summary(letters, applied))
    what = "would discard" if dry_run else "discarding"
    for letter in letters:
        say(f"{what} {_line(letter, letter.identity in applied)}")
    if not dry_run:
        _send(context, letters, discarded, "discarded")


def _send(
    context: Context,
    letters: Sequence[DeadLetter],
    made: Callable[[ConsumerRecord], Message],
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
    made: Callable[[ConsumerRecord], Message],
    rate: float | None,
    sent: Counter[str],
) -> None:
    loop = asyncio.get_running_loop()
    async with KafkaProducer(context.kafka).running() as producer:
        for letter in letters:
            started = loop.time()
            try:
                message = made(letter.record)
            except ValueError as reason:
                say(f"skipped: {reason}", err=True)
                continue
            try:
                await producer.send(message)
            except BrokerUnavailable:
                raise
            except SendError as reason:  # this one's own fault: the others can still go
                say(f"skipped {letter.id}: {reason}", err=True)
                continue
            sent[letter.consumer] += 1
            if rate is not None:
                await asyncio.sleep(max(0.0, 1 / rate - (loop.time() - started)))


async def _find(
    context: Context, only: Filter, undecodable: bool
) -> tuple[list[DeadLetter], set[Identity]]:
    _refuse_unknown(context, only)
    topics = dead_letter_topics(context.subscriptions, context.registry, only)
    # A message counts as it failed last: to choose before would find it as it failed earlier.
    found = newest([letter async for letter in read(context.kafka, topics)])
    letters = [
        letter
        for letter in found
        if only.matches(letter) and not (undecodable and is_readable(letter, context.registry))
    ]
    return letters, await _applied(letters)


def _refuse_unknown(context: Context, only: Filter) -> None:
    """A name that is misspelt would find nothing, as if all were well."""
    consumers = [subscription.name for subscription in context.subscriptions]
    if only.consumer is not None and only.consumer not in consumers:
        raise unknown("consumer", only.consumer, consumers)
    topics = {topic for each in context.subscriptions for topic in each.topics(context.registry)}
    if only.topic is not None and only.topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise failure(f"no consumer reads the topic {only.topic}; they read: {known}")


async def _applied(letters: Sequence[DeadLetter]) -> set[Identity]:
    """The dead letters whose events the inbox knows: a replay has already succeeded."""
    known: set[tuple[str, UUID]] = set()

    async def ask(database: Database) -> None:
        async with database.sessions() as session:
            for consumer in {letter.consumer for letter in letters}:
                ids = [x.event_id for x in letters if x.consumer == consumer and x.event_id]
                found = await inbox.applied(session, consumer, ids)
                known.update((consumer, event_id) for event_id in found)

    await on_database(ask)
    return {x.identity for x in letters if x.event_id and (x.consumer, x.event_id) in known}


async def _find_one(context: Context, letter_id: str) -> DeadLetter:
    topics = dead_letter_topics(context.subscriptions, context.registry, Filter())
    async for letter in read(context.kafka, topics):
        if letter.id == letter_id:
            return letter
    raise failure(f"there is no dead letter {letter_id}: `app dlq list` shows them")


def _line(letter: DeadLetter, applied: bool) -> str:
    failed = letter.last_failed_at.isoformat(timespec="seconds") if letter.last_failed_at else "-"
    state = "applied" if applied else "waiting"
    replays = f" replayed={letter.replays}" if letter.replays else ""
    omitted = f" omitted={letter.omitted_bytes}B" if letter.omitted_bytes else ""
    error = one_line(f"{letter.error_type}: {letter.error_message}")
    return printable(
        f"{letter.id}  {state}  {failed}  consumer={letter.consumer} from={letter.origin}"
        f"[{letter.origin_partition}]@{letter.origin_offset} key={letter.key or 'none'}"
        f" attempts={letter.attempts}{replays}{omitted}  {error}"
    )


def _summary(letters: Sequence[DeadLetter], applied: set[Identity]) -> str:
    waiting = sum(letter.identity not in applied for letter in letters)
    total, since = counted(len(letters), "dead letter"), len(letters) - waiting
    return f"{total}, {waiting} waiting, {since} applied since"


def _left_out(count: int) -> str:
    return (
        f"{count} left out, which this version of the service cannot read:"
        " --undecodable replays those, `app dlq discard --undecodable` gives them up"
    )


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None
