"""Topics: `app topics …`."""

import asyncio
from collections.abc import Sequence

import typer

from app.commands import Context, counted
from app.kafka.admin import State, TopicAdmin, TopicState, provision
from app.kafka.topics import Topic
from app.terminal import say

commands = typer.Typer()
group = typer.Typer(help="The service's Kafka topics.", no_args_is_help=True)
commands.add_typer(group, name="topics")


@group.command("list")
def list_topics() -> None:
    """Show each topic that the service needs, and what the broker has of it."""
    for state in asyncio.run(_states()):
        say(_line(state))


@group.command()
def check() -> None:
    """Exit with code 1 when a topic is missing, hidden from this user, or differs in what `create`
    would give it."""
    wrong = [state for state in asyncio.run(_states()) if state.state is not State.PRESENT]
    for state in wrong:
        say(_line(state))
    if wrong:
        raise typer.Exit(1)
    say("all topics are there")


@group.command()
def create() -> None:
    """Make the missing topics. Existing ones are left as they are."""
    context = Context.from_environment()
    made = asyncio.run(provision(context.kafka, context.topics()))
    for name in made:
        say(f"created {name}")
    say(f"{counted(len(made), 'topic')} created" if made else "all topics were there")


async def _states() -> list[TopicState]:
    context = Context.from_environment()
    topics: Sequence[Topic] = context.topics()
    async with TopicAdmin.connected(context.kafka) as admin:
        return await admin.compare(topics)


def _line(state: TopicState) -> str:
    detail = f" ({state.detail})" if state.detail else ""
    topic = state.topic
    return (
        f"{state.state.value:<10}{topic.name}  partitions={topic.partitions}"
        f" replication={topic.replication_factor}{detail}"
    )
