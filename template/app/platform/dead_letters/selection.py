"""The selection of dead letters: which there are, which can be replayed, and why others cannot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition

from app.platform.database.engine import Database
from app.platform.dead_letters.outcomes import find_applied
from app.platform.kafka.admin import reading
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
from app.platform.kafka.excerpts import MAX_BYTES, read_newest, read_one
from app.platform.kafka.orphans import has_members, orphaned_topics, read_orphaned, waiting_filter
from app.platform.kafka.topics import FailureTopic, failure_topic
from app.platform.runtime import Context


class SelectionRefused(Exception):
    """A selection that cannot be made. The message says why, and what to do."""


@dataclass(frozen=True)
class Found:
    """The selected dead letters, and those of them that were applied since.

    `has_older` says that only the newest were read, and that older ones may match, too.
    """

    letters: Sequence[DeadLetter]
    applied: set[Identity]
    has_older: bool = False

    @property
    def waiting(self) -> list[DeadLetter]:
        return [letter for letter in self.letters if letter.identity not in self.applied]


@dataclass(frozen=True)
class Choice:
    """The letters that are replayed, and the reasons why others are not, a sentence each."""

    letters: list[DeadLetter]
    reasons: list[str]


async def find(
    context: Context,
    database: Database,
    only: Filter,
    undecodable: bool,
    to: str | None = None,
    newest: int | None = None,
) -> Found:
    """Find the letters that match `only`, of all or of the `newest` messages in the failure topics.

    With `newest`, no more than MAX_BYTES of values are kept, and tombstones count as messages, too.
    Raises SelectionRefused and BrokerUnavailable.
    """
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    _refuse_unknown(context, only, orphans)
    topics = dead_letter_topics(context.subscriptions, context.registry, only)
    matching = [orphan for orphan in orphans if only.may_match(orphan)]
    everything, has_older = await _read(context, topics, matching, newest)
    # Filtering comes last, because only the newest letter of a message counts.
    letters = [
        letter
        for letter in current_letters(everything)
        if only.matches(letter) and not (undecodable and can_be_read(context, letter, to))
    ]
    return Found(letters, await find_applied(database, context, letters, to), has_older)


async def _read(
    context: Context, topics: list[str], orphans: list[FailureTopic], newest: int | None
) -> tuple[list[DeadLetter], bool]:
    """Return the letters and tombstones of the topics, and whether there are older ones."""
    if newest is None:
        letters = [letter async for letter in read_dead_letters(context.kafka, topics)]
        return letters + await read_orphaned(context.kafka, orphans), False
    is_waiting = await waiting_filter(context.kafka, orphans)
    names = topics + [orphan.name for orphan in orphans]
    async with reading(context.kafka, names) as client:
        records, has_older = await read_newest(client, newest, MAX_BYTES)
    return [x for record in records if is_waiting(x := DeadLetter.of(record))], has_older


async def find_one(context: Context, letter_id: str) -> DeadLetter:
    """Read one letter, and nothing else. Raises SelectionRefused and BrokerUnavailable."""
    topic, _, place = letter_id.partition(":")
    partition, _, offset = place.partition(":")
    if partition.isdecimal() and offset.isdecimal() and await _has_letters(context, topic):
        tp = TopicPartition(topic, int(partition))
        async with reading(context.kafka, [topic]) as client:
            record = await read_one(client, tp, int(offset)) if tp in client.assignment() else None
        if record is not None and (letter := DeadLetter.of(record)).id == letter_id:
            return letter
    raise SelectionRefused(f"there is no dead letter {letter_id}: run `app dlq list`")


async def _has_letters(context: Context, topic: str) -> bool:
    if topic in dead_letter_topics(context.subscriptions, context.registry, Filter()):
        return True
    orphans = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    return topic in {orphan.name for orphan in orphans}


def can_be_read(context: Context, letter: DeadLetter, to: str | None = None) -> bool:
    """Return whether the letter's consumer, or the one it goes `to`, can decode it."""
    reader = to or letter.consumer
    return is_decodable(letter, decoder_of(reader, context.registry, context.subscriptions))


def _refuse_unknown(context: Context, only: Filter, orphans: Sequence[FailureTopic]) -> None:
    """Refuse unknown names, because a misspelt one would find nothing."""
    consumers = [subscription.name for subscription in context.subscriptions]
    removed = sorted({orphan.consumer for orphan in orphans} - {*consumers})
    if only.consumer is not None and only.consumer not in (*consumers, *removed):
        raise _unknown_consumer(only.consumer, [*consumers, *removed])
    topics = {topic for each in context.subscriptions for topic in each.topics(context.registry)}
    topics |= {orphan.origin for orphan in orphans}
    if only.topic is not None and only.topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise SelectionRefused(f"no consumer reads the topic {only.topic}; they read: {known}")


def _unknown_consumer(name: str, names: Sequence[str]) -> SelectionRefused:
    known = ", ".join(names) or "none"
    return SelectionRefused(f"there is no consumer {name}; there are: {known}")


# Choosing those to replay


async def check_reassignment(context: Context, only: Filter, to: str) -> None:
    """Raise SelectionRefused unless the letters of `only` may go `to` another consumer."""
    names = [subscription.name for subscription in context.subscriptions]
    if to not in names:
        raise _unknown_consumer(to, names)
    if only.consumer is None:
        raise SelectionRefused("no consumer selected: use --consumer OLD --to NEW")
    if only.consumer not in names and await has_members(context.kafka, only.consumer):
        raise SelectionRefused(
            f"a process still runs the consumer {only.consumer}, so both would handle its messages:"
            " stop it first"
        )


def choose(context: Context, found: Found, to: str | None, undecodable: bool) -> Choice:
    """Choose the waiting letters that can be replayed, `to` another consumer if one is named.

    Those that this version cannot decode are left out, unless `undecodable` asks for them.
    """
    waiting = found.waiting
    chosen = _replayable(context, waiting) if to is None else _reassignable(context, waiting, to)
    if undecodable:
        return chosen
    letters = [letter for letter in chosen.letters if can_be_read(context, letter, to)]
    if len(letters) < len(chosen.letters):
        chosen.reasons.append(skipped_undecodable(len(chosen.letters) - len(letters)))
    return Choice(letters, chosen.reasons)


def _replayable(context: Context, waiting: Sequence[DeadLetter]) -> Choice:
    letters = [letter for letter in waiting if not is_orphaned(context, letter)]
    return Choice(letters, advice_on_orphaned(context, waiting))


def _reassignable(context: Context, waiting: Sequence[DeadLetter], to: str) -> Choice:
    reasons = []
    orphaned = [letter for letter in waiting if is_orphaned(context, letter)]
    if len(orphaned) < len(waiting):
        count = len(waiting) - len(orphaned)
        reasons.append(
            f"{count} skipped, because their consumer still reads the topic: replay without --to"
        )
    accepted = [letter for letter in orphaned if to in readers(context, letter.origin)]
    if len(accepted) < len(orphaned):
        others = ", ".join(sorted({x.origin for x in orphaned if x not in accepted}))
        count = len(orphaned) - len(accepted)
        reasons.append(
            f"{count} skipped, because {to} does not read {others}: subscribe it, or choose another"
        )
    return Choice(accepted, reasons)


def skipped_undecodable(count: int) -> str:
    return (
        f"{count} skipped, because this version of the service cannot decode them:"
        " --undecodable replays them, `app dlq discard --undecodable` discards them"
    )


# Removed consumers


def readers(context: Context, origin: str) -> list[str]:
    """Return the consumers that read the topic."""
    return [each.name for each in context.subscriptions if origin in each.topics(context.registry)]


def is_orphaned(context: Context, letter: DeadLetter) -> bool:
    """Return whether the letter's consumer no longer reads its topic, so that a replay is in vain."""
    topic = failure_topic(letter.record.topic)
    return topic is not None and topic.consumer not in readers(context, topic.origin)


def takers(context: Context, found: Found) -> list[str]:
    """Return the consumers to which waiting letters can go whose own consumer is gone."""
    orphaned = [letter for letter in found.waiting if is_orphaned(context, letter)]
    return sorted({name for letter in orphaned for name in readers(context, letter.origin)})


def advice_on_orphaned(context: Context, waiting: Sequence[DeadLetter]) -> list[str]:
    """Say what can be done about letters that a replay cannot reach, a sentence for each consumer."""
    topics = (failure_topic(x.record.topic) for x in waiting if is_orphaned(context, x))
    groups = Counter((topic.consumer, topic.origin) for topic in topics if topic is not None)
    advice = []
    for (consumer, origin), count in sorted(groups.items()):
        todo = f"`app dlq discard --consumer {consumer} --topic {origin}` discards them"
        if others := ", ".join(readers(context, origin)):
            todo = (
                f"`app dlq replay --consumer {consumer} --to NAME` sends them to {others}; {todo}"
            )
        else:
            todo = f"subscribe a consumer to it, or {todo}"
        advice.append(
            f"{count} waiting from {origin} in {consumer}, which no longer reads it: {todo}"
        )
    return advice
