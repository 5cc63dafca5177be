"""Dead letters: `app dlq …`."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from app.platform.cli.base import context_of, counted, failure, on_database, unknown
from app.platform.cli.dlq_sending import replay_of, send
from app.platform.cli.events import one_line
from app.platform.cli.events import show as show_record
from app.platform.database.engine import Database
from app.platform.kafka import inbox
from app.platform.kafka.dead_letters import (
    DeadLetter,
    Filter,
    Identity,
    current_letters,
    dead_letter_topics,
    is_decodable,
    read_dead_letters,
)
from app.platform.kafka.orphans import has_members, orphaned_topics, read_orphaned
from app.platform.kafka.retry import discard_tombstone
from app.platform.kafka.topics import FailureTopic, failure_topic
from app.platform.runtime import Context
from app.platform.terminal import printable, say, say_block

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
    ctx: typer.Context,
    consumer: ConsumerName = None,
    topic: TopicName = None,
    error: ErrorType = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    undecodable: Undecodable = False,
) -> None:
    """Show the dead letters, one a line, and whether their events were applied since.

    Those of consumers that the code has no more are among them, with what waits for a delay or a
    replay that nobody reads any more.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = context_of(ctx)
    found = asyncio.run(_find(context, only, undecodable))
    for letter in found.letters:
        say(_line(letter, letter.identity in found.applied))
    say(_summary(found.letters, found.applied))
    _say_orphaned(context, found.waiting)


@group.command()
def show(
    ctx: typer.Context,
    letter_id: Annotated[str, typer.Argument(help="As `app dlq list` prints it.")],
) -> None:
    """Show one dead letter: headers, body, and the error that brought it here."""
    context = context_of(ctx)
    letter = asyncio.run(_find_one(context, letter_id))
    say_block(show_record(letter.record))


@group.command()
def replay(
    ctx: typer.Context,
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
    to: Annotated[
        str | None,
        typer.Option("--to", help="To this consumer, as the code has that of --consumer no more."),
    ] = None,
) -> None:
    """Send dead letters back to the consumer that they failed in, with their event ids.

    Safe to interrupt and to repeat: what has been applied is skipped, here and by the inbox. What
    this version of the service cannot read would only come back: it needs --undecodable.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = context_of(ctx)
    if to is not None:
        _check_hand_over(context, only, to)
    found = asyncio.run(_find(context, only, undecodable, to))
    say(_summary(found.letters, found.applied))
    chosen = _of_the_code(context, found) if to is None else _handed_to(context, found, to)
    todo = [x for x in chosen if undecodable or is_decodable(x, context.registry)]
    if len(todo) < len(chosen):
        say(_left_out(len(chosen) - len(todo)))
    if dry_run:
        for letter in todo:
            say(f"would replay {_line(letter, False)}")
        return
    send(context, todo, lambda letter: replay_of(letter, to), "replayed", rate)


@group.command()
def discard(
    ctx: typer.Context,
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
    context = context_of(ctx)
    found = asyncio.run(_find(context, only, undecodable))
    say(_summary(found.letters, found.applied))
    what = "would discard" if dry_run else "discarding"
    for letter in found.letters:
        say(f"{what} {_line(letter, letter.identity in found.applied)}")
    if not dry_run:
        send(context, found.letters, lambda letter: [discard_tombstone(letter.record)], "discarded")


@dataclass(frozen=True)
class Found:
    """The dead letters that were asked for, and which of them were applied since."""

    letters: Sequence[DeadLetter]
    applied: set[Identity]

    @property
    def waiting(self) -> list[DeadLetter]:
        return [letter for letter in self.letters if letter.identity not in self.applied]


async def _find(context: Context, only: Filter, undecodable: bool, to: str | None = None) -> Found:
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    _refuse_unknown(context, only, orphans)
    topics = dead_letter_topics(context.subscriptions, context.registry, only)
    everything = [letter async for letter in read_dead_letters(context.kafka, topics)]
    everything += await read_orphaned(context.kafka, filter(only.may_match, orphans))
    # A message counts as it failed last: to choose before would find it as it failed earlier.
    letters = [
        letter
        for letter in current_letters(everything)
        if only.matches(letter) and not (undecodable and is_decodable(letter, context.registry))
    ]
    return Found(letters, await _applied(letters, to))


def _refuse_unknown(context: Context, only: Filter, orphans: Sequence[FailureTopic]) -> None:
    """A name that is misspelt would find nothing, as if all were well."""
    consumers = [subscription.name for subscription in context.subscriptions]
    gone = sorted({orphan.consumer for orphan in orphans} - {*consumers})
    if only.consumer is not None and only.consumer not in (*consumers, *gone):
        raise unknown("consumer", only.consumer, [*consumers, *gone])
    topics = {topic for each in context.subscriptions for topic in each.topics(context.registry)}
    topics |= {orphan.origin for orphan in orphans}
    if only.topic is not None and only.topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise failure(f"no consumer reads the topic {only.topic}; they read: {known}")


# Consumers that the code has no more


def _readers(context: Context, origin: str) -> list[str]:
    """The consumers that read the topic."""
    return [each.name for each in context.subscriptions if origin in each.topics(context.registry)]


def _is_orphaned(context: Context, letter: DeadLetter) -> bool:
    place = failure_topic(letter.record.topic)
    return place is not None and place.consumer not in _readers(context, place.origin)


def _say_orphaned(context: Context, waiting: Sequence[DeadLetter]) -> None:
    """Say of letters that no replay reaches what can be done about them."""
    places = (failure_topic(x.record.topic) for x in waiting if _is_orphaned(context, x))
    groups = Counter((place.consumer, place.origin) for place in places if place is not None)
    for (consumer, origin), count in sorted(groups.items()):
        readers = _readers(context, origin)
        todo = f"`app dlq discard --consumer {consumer} --topic {origin}` gives them up"
        if readers:
            others = ", ".join(readers)
            todo = (
                f"`app dlq replay --consumer {consumer} --to NAME` hands them to {others}; {todo}"
            )
        else:
            todo = f"subscribe a consumer to it, or {todo}"
        say(f"{count} waiting from {origin} in {consumer}, which does not read it any more: {todo}")


def _check_hand_over(context: Context, only: Filter, to: str) -> None:
    names = [subscription.name for subscription in context.subscriptions]
    if to not in names:
        raise unknown("consumer", to, names)
    if only.consumer is None:
        raise failure("say whose dead letters: --consumer OLD --to NEW")
    if only.consumer not in names and asyncio.run(has_members(context.kafka, only.consumer)):
        raise failure(
            f"a process still runs the consumer {only.consumer}: stop it first, or its messages"
            " would be handled by both"
        )


def _of_the_code(context: Context, found: Found) -> list[DeadLetter]:
    """The waiting letters whose consumer is there; what to do about the others is said."""
    _say_orphaned(context, found.waiting)
    return [letter for letter in found.waiting if not _is_orphaned(context, letter)]


def _handed_to(context: Context, found: Found, to: str) -> list[DeadLetter]:
    """The waiting letters that another consumer can take; why not the others is said."""
    orphaned = [letter for letter in found.waiting if _is_orphaned(context, letter)]
    if len(orphaned) < len(found.waiting):
        count = len(found.waiting) - len(orphaned)
        say(f"{count} left out, whose consumer still reads their topic: replay those without --to")
    taken = [letter for letter in orphaned if to in _readers(context, letter.origin)]
    if len(taken) < len(orphaned):
        others = ", ".join(sorted({x.origin for x in orphaned if x not in taken}))
        count = len(orphaned) - len(taken)
        say(f"{count} left out: {to} does not read {others}; subscribe it, or choose another")
    return taken


async def _applied(letters: Sequence[DeadLetter], to: str | None) -> set[Identity]:
    """The dead letters whose events the inbox knows, of their consumer or of the one they go `to`:
    a replay has already succeeded."""
    known: set[tuple[str, UUID]] = set()

    async def ask(database: Database) -> None:
        async with database.sessions() as session:
            for consumer in {letter.consumer for letter in letters}:
                ids = [x.event_id for x in letters if x.consumer == consumer and x.event_id]
                for name in {consumer, to or consumer}:
                    found = await inbox.applied(session, name, ids)
                    known.update((consumer, event_id) for event_id in found)

    await on_database(ask)
    return {x.identity for x in letters if x.event_id and (x.consumer, x.event_id) in known}


async def _find_one(context: Context, letter_id: str) -> DeadLetter:
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    topics = dead_letter_topics(context.subscriptions, context.registry, Filter())
    topics += [orphan.name for orphan in orphans]
    async with aclosing(read_dead_letters(context.kafka, topics)) as letters:
        async for letter in letters:
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
