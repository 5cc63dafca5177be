"""Pages of the console: rendering, the fields of URLs and forms, and what all pages share."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import ConsumerRecord
from jinja2 import Environment, PackageLoader
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from app import PROJECT_NAME
from app.platform.bodies import format_body
from app.platform.console.access import TOKEN, ConsoleSettings, listed
from app.platform.console.jobs import Job, Jobs
from app.platform.database.engine import Database
from app.platform.events.event import Tombstone
from app.platform.health import Health
from app.platform.http.browser import Fields
from app.platform.kafka.decoding import EventDecoder
from app.platform.kafka.errors import UndecodableMessage
from app.platform.runtime import Context
from app.platform.service import Service
from app.platform.terminal import printable

NOTHING = "-"
BODY_CHARACTERS = 100_000


@dataclass(frozen=True)
class Console:
    """The service as the console sees it, and what its pages share.

    Actions use the database `unlimited`, as commands do: its statements take any time. `navigation`
    has the texts of the pages by their paths.
    """

    service: Service
    context: Context
    database: Database
    unlimited: Database
    health: Health
    settings: ConsoleSettings
    navigation: Mapping[str, str]
    jobs: Jobs = field(default_factory=Jobs)

    def render(self, request: Request, page: str, title: str, **values: Any) -> HTMLResponse:
        """Return the page of the template `page` with `values`. Every value is escaped."""
        path = _path_of(request)
        text = _environment.get_template("base.html.j2").render(
            page=f"{page}.html.j2",
            title=title,
            project=PROJECT_NAME,
            navigation=self.navigation,
            root=_root_of(request),
            here=path.split("/")[1],
            token=TOKEN.of(request),
            can_act=self.settings.console_actions,
            actor=request.state.actor,
            **values,
        )
        response = HTMLResponse(text)
        if (cookie := TOKEN.cookie(request)) is not None:
            response.headers.append("Set-Cookie", cookie)
        return response

    async def form(self, request: Request) -> Fields:
        """Return the fields of a form that asks for an action.

        Raises HTTPException 403 where actions are off, and that of `FormToken.read_form`.
        """
        if not self.settings.console_actions:
            raise HTTPException(
                403, "this console is read-only: CONSOLE_ACTIONS=true allows actions"
            )
        return await TOKEN.read_form(request)

    def begin(
        self, request: Request, title: str, work: Callable[[Job], Awaitable[None]]
    ) -> RedirectResponse:
        """Run `work` in the background, and lead the browser to the page of its progress."""
        job = self.jobs.start(title, request.state.actor, work)
        return RedirectResponse(f"{_root_of(request)}jobs/{job.id}", 303)

    def decoded(
        self, decoder: EventDecoder, record: ConsumerRecord, origin: str
    ) -> tuple[str, str | None]:
        """Return the name and the body of the event that this version of the service reads in a message.

        If it reads none, the first is the reason, and the second is None.
        """
        try:
            found = decoder.decode(record, origin)
        except UndecodableMessage as error:
            return str(error), None
        if found is None:
            return "no event of the service has its type", None
        if isinstance(found.event, Tombstone):
            return f"a tombstone of {found.event.model.__name__}", ""
        return type(found.event).__name__, self.body(found.event.model_dump_json().encode())

    @property
    def masked(self) -> list[str]:
        """The names of the fields whose values are hidden."""
        return listed(self.settings.console_masked_fields)

    def body(self, value: bytes | None) -> str:
        """Format a message's value for people, with masked fields, cut after 100,000 characters."""
        text = format_body(value, self.masked)
        left = len(text) - BODY_CHARACTERS
        return text if left <= 0 else f"{text[:BODY_CHARACTERS]}… ({left} characters left out)"


def console_of(request: Request) -> Console:
    """Return the console that a request is for."""
    found: Console = request.app.state.console
    return found


def _path_of(request: Request) -> str:
    """Return the path below the console, which may be mounted somewhere."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path or "/"


def _root_of(request: Request) -> str:
    """Return the relative URL of the console's root: it holds behind any proxy's prefix."""
    return "../" * (_path_of(request).count("/") - 1) or "./"


# Filters of the templates


def _shown(value: object) -> object:
    """Escape control and invisible characters of values, besides HTML's."""
    if value is None:
        return NOTHING
    return printable(value, keep="\n\t") if type(value) is str else value


def moment(value: datetime | int | float | None) -> str:
    """Format a time, or the milliseconds of a record, in UTC."""
    if value is None:
        return NOTHING
    try:
        time = value if isinstance(value, datetime) else datetime.fromtimestamp(value / 1000, UTC)
        return time.astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    except (ValueError, OverflowError, OSError):  # the sender's clock may be arbitrarily wrong
        return f"timestamp {value}"


def text(value: bytes | None) -> str:
    """Decode a key or a header's value for people."""
    return NOTHING if value is None else value.decode("utf-8", "backslashreplace")


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


WIDTH, HEIGHT = 120, 24


def sparkline(values: Sequence[float]) -> str:
    """Return the points of a polyline of 120 by 24 for `values`, evenly spaced; "" for fewer than two."""
    if len(values) < 2:
        return ""
    top, step = max(values) or 1.0, WIDTH / (len(values) - 1)
    return " ".join(
        f"{n * step:.1f},{HEIGHT - 1 - (HEIGHT - 2) * value / top:.1f}"
        for n, value in enumerate(values)
    )


_environment = Environment(
    loader=PackageLoader("app.platform.console"),
    autoescape=True,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "moment": moment,
    "text": text,
    "number": _number,
    "sparkline": sparkline,
}
