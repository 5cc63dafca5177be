"""Writing new parts of the service: `app new …`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.platform.cli.base import failure, require_development, service_of
from app.platform.terminal import say

commands = typer.Typer()
group = typer.Typer(
    help="Write a new part of the service: an entity, an event or a consumer.", no_args_is_help=True
)
commands.add_typer(group, name="new")

Plural = Annotated[str, typer.Argument(help="The entity's name in the plural, such as shipments.")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        help="name:type, or name:type? for an optional one; types are str, text, int, decimal, bool,"
        " datetime, date and uuid. Repeat it for each field.",
    ),
]
Slice = Annotated[
    str | None, typer.Option(help="The folder in app; by default that of the event's entity.")
]
Projection = Annotated[
    bool,
    typer.Option("--projection", help="With a read model, and routes on it (module cqrs)."),
]
EventSourced = Annotated[
    bool,
    typer.Option("--event-sourced", help="Stored as a stream of events (module event_sourcing)."),
]
Singular = Annotated[
    str | None, typer.Option(help="The name in the singular, where it is not the usual one.")
]


def _project() -> Path:
    """Return the folder of the service, which is the present one. Ends the command in any other."""
    here = Path.cwd()
    if not (here / "app" / "wiring.py").is_file():
        raise failure(f"{here} has no app/wiring.py: run this in the service's folder")
    return here


@contextmanager
def _failures() -> Iterator[None]:
    """End the command with one line if nothing could be written."""
    from app.platform.dev.scaffold import ScaffoldFailed
    from app.platform.dev.scaffold_fields import ScaffoldRefused

    try:
        yield
    except (OSError, ScaffoldFailed, ScaffoldRefused) as error:
        raise failure(str(error)) from error


def _say_done(done: Mapping[Path, str]) -> None:
    for path, action in done.items():
        say(f"{action:<7} {path.as_posix()}")


@group.command()
def entity(
    ctx: typer.Context,
    name: Plural,
    field: Fields = None,
    singular: Singular = None,
    projection: Projection = False,
    event_sourced: EventSourced = False,
) -> None:
    """Write a slice: table, migration, routes, events, handler and tests.

    It is wired, and passes the service's checks as it is. Without --field it has `name:str`.
    """
    require_development("app new")
    from app.platform.dev.scaffold import Entity, first_request, write_entity

    project = _project()
    with _failures():
        new = Entity.parse(
            name, singular, field or (), projection=projection, streamed=event_sourced
        )
        done = write_entity(project, new, service_of(ctx))
    _say_done(done)
    path, body = first_request(new)
    say("")
    say(f"Test it:  uv run pytest tests/{new.plural} tests/contracts")
    say("Try it:   uv run app dev, and then")
    say(f"  curl http://127.0.0.1:8000{path} --json '{body}'")


@group.command()
def event(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="entity.action, such as shipment.dispatched.")],
    field: Fields = None,
    slice: Slice = None,
    service: Annotated[
        str | None, typer.Option(help="The service that publishes it, if it is not this one.")
    ] = None,
) -> None:
    """Declare an event in a slice, with its schema and a golden sample."""
    require_development("app new")
    from app.platform.dev.additions import NewEvent, write_event

    project = _project()
    with _failures():
        done = write_event(
            project, NewEvent.parse(name, slice, field or (), service), service_of(ctx)
        )
    _say_done(done)


@group.command()
def consumer(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name, such as dispatch-mails.")],
    event: Annotated[
        str, typer.Argument(help="The event that it reads, such as shipment.created.")
    ],
    slice: Slice = None,
) -> None:
    """Declare a consumer of an event in a slice; its handler is still to be filled in."""
    require_development("app new")
    from app.platform.dev.additions import NewConsumer, write_consumer

    project = _project()
    with _failures():
        new = NewConsumer.parse(name, event, slice, service_of(ctx))
        done = write_consumer(project, new)
    _say_done(done)
    say("")
    say(f"Fill in:  {new.function} in {new.path.as_posix()}; until then it accepts every event")
    say("          and does nothing. A running `app dev` without --reload needs a restart.")
