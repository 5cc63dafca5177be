"""Dead letters: `app dlq …`."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.platform.cli import dlq_sending
from app.platform.cli.base import context_of, counted, failure, on_database, unknown
from app.platform.cli.dlq_outcomes import find_applied
from app.platform.cli.events import one_line
from app.platform.cli.events import show as show_record
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
from app.platform.kafka.topics import FailureTopic, failure_topic
from app.platform.runtime import Context
from app.platform.terminal import printable, say, say_block

commands = typer.Typer()
group = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)
commands.add_typer(group, name="dlq")

TIME_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

ConsumerName = Annotated[
    str | None, typer.Option("--consumer", help="Only letters of this consumer.")
]
TopicName = Annotated[
    str | None, typer.Option("--topic", help="Only letters of messages from this topic.")
]
ErrorType = Annotated[
    str | None,
    typer.Option("--error", help="Only letters with this error type, such as ValueError."),
]
Key = Annotated[str | None, typer.Option("--key", help="Only letters with this message key.")]
Since = Annotated[
    datetime | None,
    typer.Option("--since", formats=TIME_FORMATS, help="Only letters that failed since (UTC)."),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", formats=TIME_FORMATS, help="Only letters that failed before (UTC)."),
]
Undecodable = Annotated[
    bool, typer.Option("--undecodable", help="Only letters that this version cannot decode.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the letters, and change nothing.")]
Rate = Annotated[float | None, typer.Option(help="The maximum of messages a second.", min=0.001)]
To = Annotated[
    str | None,
    typer.Option("--to", help="Another consumer, in place of that of --consumer, which is gone."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until each is applied or fails again.")]
MaxWait = Annotated[
    float, typer.Option("--timeout", help="The maximum of seconds for --wait.", min=1)
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
    """List the dead letters, and whether their events were applied since.

    The list includes the letters of removed consumers, and messages in delay and replay topics that no
    consumer reads any more.
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
    letter_id: Annotated[str, typer.Argument(help="The id that `app dlq list` prints.")],
) -> None:
    """Show one dead letter: its headers with the error, and its body."""
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
    dry_run: DryRun = False,
    rate: Rate = None,
    to: To = None,
    wait: Wait = False,
    timeout: MaxWait = 60.0,
) -> None:
    """Send dead letters back to the consumer in which they failed, with their event ids.

    It can be interrupted and repeated: applied events are skipped, here and by the inbox. Letters that
    this version cannot decode would fail again, so they need --undecodable. With --wait, the exit
    code is 1 unless all were applied.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = context_of(ctx)
    if to is not None:
        _check_reassignment(context, only, to)
    found = asyncio.run(_find(context, only, undecodable, to))
    say(_summary(found.letters, found.applied))
    chosen = _replayable(context, found) if to is None else _reassignable(context, found, to)
    letters = [x for x in chosen if undecodable or is_decodable(x, context.registry)]
    if len(letters) < len(chosen):
        say(_skipped_undecodable(len(chosen) - len(letters)))
    if dry_run:
        for letter in letters:
            say(f"would replay {_line(letter, False)}")
        return
    dlq_sending.replay(context, letters, to, rate, timeout if wait else None)


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
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Discard dead letters, so that they are no longer listed or replayed.

    Kafka keeps their bytes as long as those of other dead letters; `app dlq show` still shows them.
    """
    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    if only == Filter() and not (undecodable or every):
        raise failure("no letters selected: use --undecodable, --error, … or --all")
    context = context_of(ctx)
    found = asyncio.run(_find(context, only, undecodable))
    say(_summary(found.letters, found.applied))
    verb = "would discard" if dry_run else "discarding"
    for letter in found.letters:
        say(f"{verb} {_line(letter, letter.identity in found.applied)}")
    if not dry_run:
        dlq_sending.discard(context, found.letters)


@dataclass(frozen=True)
class Found:
    """The selected dead letters, and those of them that were applied since."""

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
    # Filtering comes last, because only the newest letter of a message counts.
    letters = [
        letter
        for letter in current_letters(everything)
        if only.matches(letter) and not (undecodable and is_decodable(letter, context.registry))
    ]
    applied = await on_database(lambda database: find_applied(database, letters, to))
    return Found(letters, applied)


def _refuse_unknown(context: Context, only: Filter, orphans: Sequence[FailureTopic]) -> None:
    """Refuse unknown names, because a misspelt one would find nothing."""
    consumers = [subscription.name for subscription in context.subscriptions]
    removed = sorted({orphan.consumer for orphan in orphans} - {*consumers})
    if only.consumer is not None and only.consumer not in (*consumers, *removed):
        raise unknown("consumer", only.consumer, [*consumers, *removed])
    topics = {topic for each in context.subscriptions for topic in each.topics(context.registry)}
    topics |= {orphan.origin for orphan in orphans}
    if only.topic is not None and only.topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise failure(f"no consumer reads the topic {only.topic}; they read: {known}")


# Removed consumers


def _readers(context: Context, origin: str) -> list[str]:
    """Return the consumers that read the topic."""
    return [each.name for each in context.subscriptions if origin in each.topics(context.registry)]


def _is_orphaned(context: Context, letter: DeadLetter) -> bool:
    topic = failure_topic(letter.record.topic)
    return topic is not None and topic.consumer not in _readers(context, topic.origin)


def _say_orphaned(context: Context, waiting: Sequence[DeadLetter]) -> None:
    """Print what can be done about letters that a replay cannot reach."""
    topics = (failure_topic(x.record.topic) for x in waiting if _is_orphaned(context, x))
    groups = Counter((topic.consumer, topic.origin) for topic in topics if topic is not None)
    for (consumer, origin), count in sorted(groups.items()):
        readers = _readers(context, origin)
        todo = f"`app dlq discard --consumer {consumer} --topic {origin}` discards them"
        if readers:
            others = ", ".join(readers)
            todo = (
                f"`app dlq replay --consumer {consumer} --to NAME` sends them to {others}; {todo}"
            )
        else:
            todo = f"subscribe a consumer to it, or {todo}"
        say(f"{count} waiting from {origin} in {consumer}, which no longer reads it: {todo}")


def _check_reassignment(context: Context, only: Filter, to: str) -> None:
    names = [subscription.name for subscription in context.subscriptions]
    if to not in names:
        raise unknown("consumer", to, names)
    if only.consumer is None:
        raise failure("no consumer selected: use --consumer OLD --to NEW")
    if only.consumer not in names and asyncio.run(has_members(context.kafka, only.consumer)):
        raise failure(
            f"a process still runs the consumer {only.consumer}, so both would handle its messages:"
            " stop it first"
        )


def _replayable(context: Context, found: Found) -> list[DeadLetter]:
    """Return the waiting letters whose consumer exists; print what to do about the others."""
    _say_orphaned(context, found.waiting)
    return [letter for letter in found.waiting if not _is_orphaned(context, letter)]


def _reassignable(context: Context, found: Found, to: str) -> list[DeadLetter]:
    """Return the waiting letters that `to` can take; print why it cannot take the others."""
    orphaned = [letter for letter in found.waiting if _is_orphaned(context, letter)]
    if len(orphaned) < len(found.waiting):
        count = len(found.waiting) - len(orphaned)
        say(f"{count} skipped, because their consumer still reads the topic: replay without --to")
    accepted = [letter for letter in orphaned if to in _readers(context, letter.origin)]
    if len(accepted) < len(orphaned):
        others = ", ".join(sorted({x.origin for x in orphaned if x not in accepted}))
        count = len(orphaned) - len(accepted)
        say(
            f"{count} skipped, because {to} does not read {others}: subscribe it, or choose another"
        )
    return accepted


async def _find_one(context: Context, letter_id: str) -> DeadLetter:
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    topics = dead_letter_topics(context.subscriptions, context.registry, Filter())
    topics += [orphan.name for orphan in orphans]
    async with aclosing(read_dead_letters(context.kafka, topics)) as letters:
        async for letter in letters:
            if letter.id == letter_id:
                return letter
    raise failure(f"there is no dead letter {letter_id}: run `app dlq list`")


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


def _skipped_undecodable(count: int) -> str:
    return (
        f"{count} skipped, because this version of the service cannot decode them:"
        " --undecodable replays them, `app dlq discard --undecodable` discards them"
    )


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None
