"""Topics: `app topics …`."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import typer

from app.platform.cli.base import context_of, counted
from app.platform.kafka.admin import State, TopicAdmin, TopicState, provision
from app.platform.kafka.dead_letters import current_letters
from app.platform.kafka.orphans import orphaned_topics, read_orphaned
from app.platform.kafka.topics import Topic
from app.platform.runtime import Context
from app.platform.terminal import say

commands = typer.Typer()
group = typer.Typer(help="The service's Kafka topics.", no_args_is_help=True)
commands.add_typer(group, name="topics")


@group.command("list")
def list_topics(ctx: typer.Context) -> None:
    """Show each topic that the service needs, what the broker has of it, and the topics for failures
    that no consumer of the code reads any more."""
    context = context_of(ctx)
    for state in asyncio.run(_states(context)):
        say(_line(state))
    for line in asyncio.run(_orphaned(context)):
        say(line)


@group.command()
def check(ctx: typer.Context) -> None:
    """Exit with code 1 when a topic is missing, hidden from this user, or differs in what `create`
    would give it."""
    context = context_of(ctx)
    wrong = [state for state in asyncio.run(_states(context)) if state.state is not State.PRESENT]
    for state in wrong:
        say(_line(state))
    for line in asyncio.run(_orphaned(context)):
        say(line)
    if wrong:
        raise typer.Exit(1)
    say("all topics are there")


@group.command()
def create(ctx: typer.Context) -> None:
    """Make the missing topics. Existing ones are left as they are."""
    context = context_of(ctx)
    made = asyncio.run(provision(context.kafka, context.topics()))
    for name in made:
        say(f"created {name}")
    say(f"{counted(len(made), 'topic')} created" if made else "all topics were there")


async def _states(context: Context) -> list[TopicState]:
    topics: Sequence[Topic] = context.topics()
    async with TopicAdmin.connected(context.kafka) as admin:
        return await admin.compare(topics)


async def _orphaned(context: Context) -> list[str]:
    """A line for each orphaned topic. They are nothing wrong: Kafka empties them in time."""
    topics = await orphaned_topics(context.kafka, context.registry, context.subscriptions)
    letters = current_letters(await read_orphaned(context.kafka, topics))
    left = Counter(letter.record.topic for letter in letters)
    return [
        f"{'orphaned':<10}{topic.name}  messages={left[topic.name]}"
        + (f" (see `app dlq list --consumer {topic.consumer}`)" if left[topic.name] else "")
        for topic in topics
    ]


def _line(state: TopicState) -> str:
    detail = f" ({state.detail})" if state.detail else ""
    topic = state.topic
    return (
        f"{state.state.value:<10}{topic.name}  partitions={topic.partitions}"
        f" replication={topic.replication_factor}{detail}"
    )
