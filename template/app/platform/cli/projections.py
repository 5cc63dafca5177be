"""The read side: `app projections …`."""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from app.platform.cli.base import context_of, counted, failure, on_database, service_of, unknown
from app.platform.terminal import say

if TYPE_CHECKING:  # imported when a command runs, so that its help is quick
    from app.platform.database.engine import Database
    from app.platform.projections.rebuild import AnyProjection, Progress

commands = typer.Typer()
group = typer.Typer(help="The read side and its projections.", no_args_is_help=True)
commands.add_typer(group, name="projections")

Name = Annotated[str, typer.Argument(help="As `app projections list` prints it.")]
BatchSize = Annotated[int, typer.Option("--batch", help="Rows per transaction.", min=1, max=20_000)]

BATCH = 1000
SECONDS_BETWEEN_REPORTS = 1.0


@group.command("list")
def list_projections(ctx: typer.Context) -> None:
    """List the projections, with their tables."""
    for entry in _projections(ctx):
        tables = ", ".join(table.name for table in entry.projection.tables)
        say(f"{entry.projection.name:<16}{tables}")


@group.command()
def status(ctx: typer.Context) -> None:
    """Show the lag of each projection, and the progress of its rebuild."""
    from app.platform.projections import lag

    service, projections = service_of(ctx), _projections(ctx)
    context = context_of(ctx)
    lags = asyncio.run(lag.measure(context.kafka, context.registry, service.projectors))
    rebuilds = asyncio.run(on_database(lambda database: _rebuilds(projections, database)))
    for entry in projections:
        name = entry.projection.name
        behind = lags[name]
        lag_text = (
            f"{counted(behind.events, 'event')} behind, the oldest for {behind.seconds:.0f} s"
        )
        say(f"{name:<16}{lag_text}{rebuilds.get(name, '')}")


@group.command()
def rebuild(ctx: typer.Context, name: Name, batch: BatchSize = BATCH) -> None:
    """Rebuild a projection from the write side, while the old tables serve.

    It can be interrupted, and starts over when repeated.
    """
    from app.platform import telemetry
    from app.platform.projections.rebuild import RebuildRefused

    entry = _find(ctx, name)
    try:
        with telemetry.for_command():
            done = asyncio.run(on_database(lambda database: _rebuild(entry, database, batch)))
    except RebuildRefused as refusal:
        raise failure(str(refusal)) from refusal
    except KeyboardInterrupt:
        say(f"{name}: interrupted; the old one stays in place", err=True)
        raise typer.Exit(130) from None
    say(f"{name}: rebuilt from {counted(done.done, 'row')} in {done.seconds:.1f} s")


@group.command("abandon")
def abandon_rebuild(ctx: typer.Context, name: Name) -> None:
    """Drop the shadow tables that a killed rebuild left behind, to which projectors still write. A
    running rebuild stops."""
    entry = _find(ctx, name)
    if asyncio.run(on_database(lambda database: _abandon(entry, database))):
        say(f"{name}: abandoned; the old one stays in place")
    else:
        say(f"{name}: there was no rebuild")


def _projections(ctx: typer.Context) -> "list[AnyProjection]":
    return service_of(ctx).projections


def _find(ctx: typer.Context, name: str) -> "AnyProjection":
    by_name = {entry.projection.name: entry for entry in _projections(ctx)}
    if name not in by_name:
        raise unknown("projection", name, by_name)
    return by_name[name]


async def _rebuild(entry: "AnyProjection", database: "Database", batch: int) -> "Progress":
    return await entry.rebuild(database, batch).run(_Reporter(entry.projection.name))


async def _abandon(entry: "AnyProjection", database: "Database") -> bool:
    return await entry.abandon(database)


async def _rebuilds(projections: "list[AnyProjection]", database: "Database") -> Mapping[str, str]:
    """Describe the rebuilds, by projection."""
    from app.platform.projections.status import rebuild_states

    descriptions = {}
    for name, found in (await rebuild_states(projections, database)).items():
        state = "runs" if found.is_running else "was interrupted"
        done = f"{found.done} of {counted(found.expected, 'row')}"
        descriptions[name] = f"; its rebuild {state} at {done}"
    return descriptions


class _Reporter:
    """Prints the progress of a rebuild, at most once a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = 0.0

    def __call__(self, progress: "Progress") -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS_BETWEEN_REPORTS
        say(f"{self._name}: {progress.done} of about {counted(progress.expected, 'row')}")
