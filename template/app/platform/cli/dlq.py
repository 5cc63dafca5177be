"""Dead letters: `app dlq …`."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.platform.cli.base import TIME_FORMATS, context_of, failure
from app.platform.terminal import say, say_block

commands = typer.Typer()
group = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)
commands.add_typer(group, name="dlq")

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
LetterIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[letter_id]...",
        help="Only these letters, by the ids that `app dlq list` prints.",
        show_default=False,
    ),
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
    from app.platform.cli import dlq_letters
    from app.platform.dead_letters import selection
    from app.platform.kafka.dead_letters import Filter

    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = context_of(ctx)
    found = dlq_letters.find(context, only, undecodable)
    for letter in found.letters:
        say(dlq_letters.describe(letter, letter.identity in found.applied))
    say(dlq_letters.summary(found.letters, found.applied))
    for advice in selection.advice_on_orphaned(context, found.waiting):
        say(advice)


@group.command("groups")
def list_groups(ctx: typer.Context, consumer: ConsumerName = None, topic: TopicName = None) -> None:
    """Count the dead letters of each consumer by the type of their error, the most frequent first."""
    from app.platform.cli import dlq_letters
    from app.platform.dead_letters.groups import group as group_letters
    from app.platform.kafka.dead_letters import Filter

    found = dlq_letters.find(context_of(ctx), Filter(consumer, topic), undecodable=False)
    for each in group_letters(found):
        last = max(each.times, default=None)
        failed = f"  last {last.isoformat(timespec='seconds')}" if last else ""
        names = f"consumer={each.consumer} error={each.error or 'none'}"
        say(f"{len(each.letters)}, {each.waiting} waiting{failed}  {names}")
    say(dlq_letters.summary(found.letters, found.applied))


@group.command()
def show(
    ctx: typer.Context,
    letter_id: Annotated[str, typer.Argument(help="The id that `app dlq list` prints.")],
) -> None:
    """Show one dead letter: its headers with the error, and its body."""
    from app.platform.cli import dlq_letters, event_messages
    from app.platform.dead_letters import selection

    with dlq_letters.refusals_as_errors():
        letter = asyncio.run(selection.find_one(context_of(ctx), letter_id))
    say_block(event_messages.show(letter.record))


@group.command()
def replay(
    ctx: typer.Context,
    letter_ids: LetterIds = None,
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
    from app.platform.cli import dlq_letters, dlq_sending
    from app.platform.dead_letters import selection
    from app.platform.kafka.dead_letters import Filter

    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    context = context_of(ctx)
    found = dlq_letters.find(context, only, undecodable, to, letter_ids or ())
    say(dlq_letters.summary(found.letters, found.applied))
    chosen = selection.choose(context, found, to, undecodable)
    for reason in chosen.reasons:
        say(reason)
    if dry_run:
        for letter in chosen.letters:
            say(f"would replay {dlq_letters.describe(letter, False)}")
        return
    dlq_sending.replay(context, chosen.letters, to, rate, timeout if wait else None)


@group.command()
def discard(
    ctx: typer.Context,
    letter_ids: LetterIds = None,
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
    from app.platform.cli import dlq_letters, dlq_sending
    from app.platform.kafka.dead_letters import Filter

    only = Filter(consumer, topic, error, key, _utc(since), _utc(until))
    if only == Filter() and not (letter_ids or undecodable or every):
        raise failure("no letters selected: use their ids, --undecodable, --error, … or --all")
    context = context_of(ctx)
    found = dlq_letters.find(context, only, undecodable, ids=letter_ids or ())
    say(dlq_letters.summary(found.letters, found.applied))
    verb = "would discard" if dry_run else "discarding"
    for letter in found.letters:
        say(f"{verb} {dlq_letters.describe(letter, letter.identity in found.applied)}")
    if not dry_run:
        dlq_sending.discard(context, found.letters)


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None
