"""Dead letters for `app dlq …`: the selection, those of removed consumers, and their lines."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from app.platform.cli.base import counted, failure, on_database, unknown
from app.platform.cli.dlq_outcomes import find_applied
from app.platform.kafka.dead_letters import (
    DeadLetter,
    Filter,
    Identity,
    current_letters,
    dead_letter_topics,
    decoder_of,
    is_decodable,
    read_dead_letters,
)
from app.platform.kafka.orphans import has_members, orphaned_topics, read_orphaned
from app.platform.kafka.topics import FailureTopic, failure_topic
from app.platform.runtime import Context
from app.platform.terminal import one_line, printable, say


@dataclass(frozen=True)
class Found:
    """The selected dead letters, and those of them that were applied since."""

    letters: Sequence[DeadLetter]
    applied: set[Identity]

    @property
    def waiting(self) -> list[DeadLetter]:
        return [letter for letter in self.letters if letter.identity not in self.applied]


async def find(context: Context, only: Filter, undecodable: bool, to: str | None = None) -> Found:
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    _refuse_unknown(context, only, orphans)
    topics = dead_letter_topics(context.subscriptions, context.registry, only)
    everything = [letter async for letter in read_dead_letters(context.kafka, topics)]
    everything += await read_orphaned(context.kafka, filter(only.may_match, orphans))
    # Filtering comes last, because only the newest letter of a message counts.
    letters = [
        letter
        for letter in current_letters(everything)
        if only.matches(letter) and not (undecodable and can_be_read(context, letter, to))
    ]
    applied = await on_database(lambda database: find_applied(database, context, letters, to))
    return Found(letters, applied)


def can_be_read(context: Context, letter: DeadLetter, to: str | None = None) -> bool:
    """Return whether the letter's consumer, or the one it goes `to`, can decode it."""
    reader = to or letter.consumer
    return is_decodable(letter, decoder_of(reader, context.registry, context.subscriptions))


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


def say_orphaned(context: Context, waiting: Sequence[DeadLetter]) -> None:
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


def check_reassignment(context: Context, only: Filter, to: str) -> None:
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


def choose(context: Context, found: Found, to: str | None) -> list[DeadLetter]:
    """Return the waiting letters that can be replayed, `to` another consumer if one is named."""
    return _replayable(context, found) if to is None else _reassignable(context, found, to)


def _replayable(context: Context, found: Found) -> list[DeadLetter]:
    """Return the waiting letters whose consumer exists; print what to do about the others."""
    say_orphaned(context, found.waiting)
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


async def find_one(context: Context, letter_id: str) -> DeadLetter:
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    topics = dead_letter_topics(context.subscriptions, context.registry, Filter())
    topics += [orphan.name for orphan in orphans]
    async with aclosing(read_dead_letters(context.kafka, topics)) as letters:
        async for letter in letters:
            if letter.id == letter_id:
                return letter
    raise failure(f"there is no dead letter {letter_id}: run `app dlq list`")


def describe(letter: DeadLetter, applied: bool) -> str:
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


def summary(letters: Sequence[DeadLetter], applied: set[Identity]) -> str:
    waiting = sum(letter.identity not in applied for letter in letters)
    total, since = counted(len(letters), "dead letter"), len(letters) - waiting
    return f"{total}, {waiting} waiting, {since} applied since"


def skipped_undecodable(count: int) -> str:
    return (
        f"{count} skipped, because this version of the service cannot decode them:"
        " --undecodable replays them, `app dlq discard --undecodable` discards them"
    )
