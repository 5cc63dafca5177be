"""Pages of the console: templates, links, masking, and the parts that all pages share."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader
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
from app.platform.health import Health
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
_environment.globals |= {"now": partial(datetime.now, UTC)}
