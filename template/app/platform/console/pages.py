"""Pages of the console: templates, links, masking, and the parts that all pages share."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiokafka import ConsumerRecord
from jinja2 import Environment, PackageLoader
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from app.platform.console.access import (
    ConsoleSettings,
    cookie_of,
    listed,
    read_form,
    token_of,
)
from app.platform.console.jobs import Jobs
from app.platform.database.engine import Database
from app.platform.events.event import Tombstone
from app.platform.health import Health
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.errors import UndecodableMessage
from app.platform.runtime import Context
from app.platform.service import Service
from app.platform.terminal import printable

MASK = "***"
NOTHING = "-"
BODY_CHARACTERS = 100_000


@dataclass(frozen=True)
class Link:
    """An entry of the navigation: its text, and its path below the console."""

    text: str
    path: str


class Decoded(NamedTuple):
    """An event as this version of the service reads it, or the problem."""

    name: str
    problem: str | None
    body: str = ""


@dataclass(frozen=True)
class Console:
    """The service as the console sees it, and what its pages share.

    Actions use the database `unlimited`, as commands do: its statements take any time.
    """

    title: str
    version: str
    service: Service
    context: Context
    database: Database
    unlimited: Database
    health: Health
    settings: ConsoleSettings
    navigation: Sequence[Link]
    jobs: Jobs = field(default_factory=Jobs)

    def render(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """Return the page of `template` with `values`. Every value is escaped."""
        response = HTMLResponse(
            _environment.get_template(template).render(
                console=self,
                request=request,
                root=root_of(request),
                here=path_of(request).split("/")[1],
                token=token_of(request),
                can_act=self.settings.console_actions,
                actor=request.state.actor,
                **values,
            )
        )
        if (cookie := cookie_of(request)) is not None:
            response.headers.append("Set-Cookie", cookie)
        return response

    async def form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form. Raises HTTPException 403, see `read_form`."""
        return await read_form(request, self.settings)

    def decoded(self, decoder: EventDecoder, record: ConsumerRecord, origin: str) -> Decoded:
        """Return the event that this version of the service reads in a message, or why it reads none."""
        try:
            found = decoder.decode(record, origin)
        except UndecodableMessage as error:
            return Decoded("", str(error))
        if found is None:
            return Decoded("", "no event of the service has its type")
        event = found.event
        if isinstance(event, Tombstone):
            return Decoded(f"a tombstone of {event.model.__name__}", None)
        return Decoded(type(event).__name__, None, self.body(event.model_dump_json().encode()))

    def body(self, value: bytes | None) -> str:
        """Format a message's value for people, with masked fields, cut after 100,000 characters."""
        return format_body(value, listed(self.settings.console_masked_fields))


def console_of(request: Request) -> Console:
    """Return the console that a request is for."""
    found: Console = request.app.state.console
    return found


def path_of(request: Request) -> str:
    """Return the path below the console, which may be mounted somewhere."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path or "/"


def root_of(request: Request) -> str:
    """Return the relative URL of the console's root: it holds behind any proxy's prefix."""
    return "../" * (path_of(request).count("/") - 1) or "./"


def redirect(request: Request, path: str) -> RedirectResponse:
    """Lead the browser to `path` below the console, after a form."""
    return RedirectResponse(root_of(request) + path, 303)


def number_in(given: Mapping[str, str], name: str) -> int | None:
    """Return the number in a field of a URL or a form; None without one. Raises HTTPException 400."""
    text = given.get(name) or ""
    if text and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise HTTPException(400, f"{name} {text!r} is no number: use digits")
    return int(text) if text else None


def time_in(given: Mapping[str, str], name: str) -> datetime | None:
    """Return the time in a field, in UTC unless it says; None without one. Raises HTTPException 400."""
    text = given.get(name) or ""
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise HTTPException(400, f"{text!r} is no time: use 2030-12-31T23:59:59") from None
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


def format_body(value: bytes | None, masked: Collection[str] = ()) -> str:
    """Format a message's value: indented if it is JSON, without the values of `masked` fields."""
    if value is None:
        return "(no value)"
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        # Fields cannot be found in other formats, so nothing of them is shown.
        text = MASK if masked else value.decode("utf-8", "backslashreplace")
    else:
        text = json.dumps(mask(found, masked), indent=2, ensure_ascii=False)
    if len(text) <= BODY_CHARACTERS:
        return text
    return f"{text[:BODY_CHARACTERS]}… ({len(text) - BODY_CHARACTERS} characters left out)"


def mask(value: Any, names: Collection[str]) -> Any:
    """Replace the values of the fields `names`, at every depth."""
    if isinstance(value, dict):
        return {k: MASK if k in names else mask(of, names) for k, of in value.items()}
    if isinstance(value, list):
        return [mask(of, names) for of in value]
    return value


# Filters of the templates


def _shown(value: object) -> object:
    """Escape control and invisible characters of values, besides HTML's."""
    if value is None:
        return NOTHING
    return printable(value, keep="\n\t") if type(value) is str else value


def _moment(value: datetime | int | float | None) -> str:
    """Format a time, or the milliseconds of a record, in UTC."""
    if value is None:
        return NOTHING
    try:
        moment = value if isinstance(value, datetime) else datetime.fromtimestamp(value / 1000, UTC)
        return moment.astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    except (ValueError, OverflowError, OSError):  # the sender's clock may be arbitrarily wrong
        return f"timestamp {value}"


def _text(value: bytes | None) -> str:
    return NOTHING if value is None else value.decode("utf-8", "backslashreplace")


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


_environment = Environment(
    loader=PackageLoader("app.platform.console"),
    autoescape=True,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {"moment": _moment, "text": _text, "number": _number}
