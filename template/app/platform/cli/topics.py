"""Topics: `app topics …`."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.platform.cli.base import TIME_FORMATS, context_of, counted
from app.platform.terminal import say

if TYPE_CHECKING:  # imported when a command runs, so that its help is quick
    from app.platform.kafka.admin import TopicState
    from app.platform.runtime import Context

commands = typer.Typer()
group = typer.Typer(help="The service's Kafka topics.", no_args_is_help=True)
commands.add_typer(group, name="topics")


@group.command("list")
def list_topics(ctx: typer.Context) -> None:
    """List the service's topics with their state, those of foreign events, and orphaned failure topics."""
    context = context_of(ctx)
    for state in asyncio.run(compare_topics(context)):
        say(_line(state))
    for line in asyncio.run(_orphaned(context)):
        say(line)


@group.command()
def check(ctx: typer.Context) -> None:
    """Exit with code 1 if a topic is missing, hidden from this user, or differs from what `create`
    would create. Of a foreign topic, only the existence is checked."""
    context = context_of(ctx)
    states = asyncio.run(compare_topics(context))
    wrong = [state for state in states if state.is_wrong]
    for state in states:
        if state in wrong or state.topic.owner is not None:
            say(_line(state))
    for line in asyncio.run(_orphaned(context)):
        say(line)
    if wrong:
        raise typer.Exit(1)
    say("all topics exist")


@group.command()
def create(ctx: typer.Context) -> None:
    """Create the missing topics of the service. Existing and foreign ones do not change."""
    from app.platform.kafka.admin import provision

    context = context_of(ctx)
    created = asyncio.run(provision(context.kafka, context.topics()))
    for name in created:
        say(f"created {name}")
    say(f"{counted(len(created), 'topic')} created" if created else "all topics exist")


@group.command()
def messages(
    ctx: typer.Context,
    topic: Annotated[str, typer.Argument(help="A topic that `app topics list` prints.")],
    partition: Annotated[int | None, typer.Option(help="Only of this partition.", min=0)] = None,
    offset: Annotated[int | None, typer.Option(help="From this offset on.", min=0)] = None,
    time: Annotated[
        datetime | None, typer.Option(formats=TIME_FORMATS, help="From this time on (UTC).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="With this key, among the newest 5,000.")] = None,
    limit: Annotated[int, typer.Option(help="The maximum number to print.", min=1)] = 10,
) -> None:
    """Show messages of a topic, the oldest first: the newest ones, or those from an offset or a time
    on, or those with a key. However many there are, no others are read, and nothing is committed."""
    from app.platform.cli import event_messages
    from app.platform.kafka.excerpts import Place

    place = Place(partition, offset, time.replace(tzinfo=UTC) if time else None, key)
    asyncio.run(event_messages.show_messages(context_of(ctx), topic, place, limit))


async def compare_topics(context: "Context") -> "list[TopicState]":
    """Compare the service's topics, and those of foreign events, with the broker's.

    Raises MessagingError and KafkaError.
    """
    from app.platform.kafka.admin import TopicAdmin

    async with TopicAdmin.connected(context.kafka) as admin:
        return await admin.compare(context.all_topics())


async def _orphaned(context: "Context") -> list[str]:
    """Return a line for each orphaned topic. They are no error, because Kafka empties them in time."""
    from app.platform.kafka.dead_letters import current_letters
    from app.platform.kafka.orphans import orphaned_topics, read_orphaned

    topics = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    letters = current_letters(await read_orphaned(context.kafka, topics))
    counts = Counter(letter.record.topic for letter in letters)
    return [
        f"{'orphaned':<10}{topic.name}  messages={counts[topic.name]}"
        + (f" (see `app dlq list --consumer {topic.consumer}`)" if counts[topic.name] else "")
        for topic in topics
    ]


def _line(state: "TopicState") -> str:
    from app.platform.kafka.admin import State

    detail = f" ({state.detail})" if state.detail else ""
    topic = state.topic
    if topic.owner is not None:
        if not state.is_wrong:
            return f"{'foreign':<10}{topic.name}  owner={topic.owner}"
        hint = f" ({topic.owner} has to create it)" if state.state is State.MISSING else detail
        return f"{state.state.value:<10}{topic.name}  owner={topic.owner}{hint}"
    return (
        f"{state.state.value:<10}{topic.name}  partitions={topic.partitions}"
        f" replication={topic.replication_factor}{detail}"
    )
