"""Dead letters: `app dlq …`."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from app.commands import Context
from app.commands.events import show as show_record
from app.config import load
from app.database import Database, DatabaseSettings
from app.kafka import inbox
from app.kafka.dlq import DeadLetter, Filter, dead_letter_topics, newest, read
from app.kafka.errors import BrokerUnavailable, SendError
from app.kafka.producer import KafkaProducer
from app.kafka.retry import replayed

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


@group.command("list")
def list_letters(
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Show the dead letters, one a line, and whether their events were applied since."""
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    letters, applied = asyncio.run(_find(Context.from_environment(), only))
    for letter in letters:
        typer.echo(_line(letter, letter.identity in applied))
    typer.echo(_summary(letters, applied))


@group.command()
def show(
    letter_id: Annotated[str, typer.Argument(help="As `app dlq list` prints it.")],
) -> None:
    """Show one dead letter: headers, body, and the error that brought it here."""
    context = Context.from_environment()
    letter = asyncio.run(_find_one(context, letter_id))
    typer.echo(show_record(letter.record))


@group.command()
def replay(
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be replayed, and do nothing.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="At most so many messages a second.", min=0.001)
    ] = None,
) -> None:
    """Send dead letters back to the consumer that they failed in, with their event ids.

    Safe to interrupt and to repeat: what has been applied is skipped, here and by the inbox.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = Context.from_environment()
    letters, applied = asyncio.run(_find(context, only))
    todo = [letter for letter in letters if letter.identity not in applied]
    typer.echo(_summary(letters, applied))
    if dry_run:
        for letter in todo:
            typer.echo(f"would replay {_line(letter, False)}")
        return
    done = Counter[str]()
    try:
        asyncio.run(_replay(context, todo, rate, done))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except SendError as failure:
        typer.echo(f"stopped: {failure}", err=True)
        raise typer.Exit(1) from None
    finally:
        for name, count in sorted(done.items()):
            typer.echo(f"replayed {count} to {name}")
        typer.echo(f"replayed {done.total()} of {len(todo)}")


async def _replay(
    context: Context, letters: Sequence[DeadLetter], rate: float | None, done: Counter[str]
) -> None:
    loop = asyncio.get_running_loop()
    async with KafkaProducer(context.kafka).running() as producer:
        for letter in letters:
            started = loop.time()
            try:
                message = replayed(letter.record)
            except ValueError as reason:
                typer.echo(f"skipped: {reason}", err=True)
                continue
            try:
                await producer.send(message)
            except BrokerUnavailable:
                raise
            except SendError as reason:  # this one's own fault: the others can still go
                typer.echo(f"skipped {letter.id}: {reason}", err=True)
                continue
            done[letter.consumer] += 1
            if rate is not None:
                await asyncio.sleep(max(0.0, 1 / rate - (loop.time() - started)))


async def _find(
    context: Context, only: Filter
) -> tuple[list[DeadLetter], set[tuple[str, str, int, int]]]:
    topics = dead_letter_topics(context.subscriptions, context.registry, only)
    letters = newest([letter async for letter in read(context.kafka, topics, only)])
    return letters, await _applied(letters)


async def _applied(letters: Sequence[DeadLetter]) -> set[tuple[str, str, int, int]]:
    """The dead letters whose events the inbox knows: a replay has already succeeded."""
    database = Database(load(DatabaseSettings))
    known: set[tuple[str, UUID]] = set()
    try:
        async with database.sessions() as session:
            for consumer in {letter.consumer for letter in letters}:
                ids = [x.event_id for x in letters if x.consumer == consumer and x.event_id]
                found = await inbox.applied(session, consumer, ids)
                known |= {(consumer, event_id) for event_id in found}
    finally:
        await database.close()
    return {x.identity for x in letters if x.event_id and (x.consumer, x.event_id) in known}


async def _find_one(context: Context, letter_id: str) -> DeadLetter:
    topics = dead_letter_topics(context.subscriptions, context.registry, Filter())
    async for letter in read(context.kafka, topics, Filter()):
        if letter.id == letter_id:
            return letter
    typer.echo(f"there is no dead letter {letter_id}: `app dlq list` shows them", err=True)
    raise typer.Exit(1)


def _line(letter: DeadLetter, applied: bool) -> str:
    failed = letter.last_failed_at.isoformat(timespec="seconds") if letter.last_failed_at else "-"
    state = "applied" if applied else "waiting"
    error = f"{letter.error_type}: {letter.error_message}"
    return (
        f"{letter.id}  {state}  {failed}  consumer={letter.consumer} from={letter.origin}"
        f"[{letter.origin_partition}]@{letter.origin_offset} key={letter.key or 'none'}"
        f" attempts={letter.attempts}  {' '.join(error.split())[:160]}"
    )


def _summary(letters: Sequence[DeadLetter], applied: set[tuple[str, str, int, int]]) -> str:
    waiting = sum(letter.identity not in applied for letter in letters)
    return f"{len(letters)} dead letters, {waiting} waiting, {len(letters) - waiting} applied since"


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None
