"""The story of one request: `app trace`."""

import asyncio
from datetime import UTC
from pathlib import Path
from typing import Annotated

import typer

from app.platform.cli.base import context_of, failure, on_database
from app.platform.terminal import printable, say

commands = typer.Typer()

LOG = Path(".dev/app.log")


@commands.command()
def trace(
    ctx: typer.Context,
    correlation_id: Annotated[
        str, typer.Argument(help="As the response's X-Correlation-Id and the log lines have it.")
    ],
    log: Annotated[Path, typer.Option(help="A log in JSON; `app dev` writes the default.")] = LOG,
) -> None:
    """Print what one request led to, in order of time.

    The sources are log lines, rows of the outbox, and the messages of the service's topics, dead
    letters included. The topics are read from their beginnings.
    """
    from app.platform import story

    context = context_of(ctx)
    if not log.exists():
        say(f"{log} does not exist: without log lines", err=True)
    steps = [*story.logged(log, correlation_id)]
    steps += asyncio.run(
        on_database(lambda database: story.recorded(context, database, correlation_id))
    )
    if not steps:
        raise failure(f"nothing is known of the correlation id {correlation_id}")
    for step in sorted(steps, key=lambda step: step[:3]):
        time = step.time.astimezone(UTC).isoformat(timespec="milliseconds")
        say(printable(f"{time}  {step.source:<6}  {step.text}"))
