"""A browser without scripts for tests of the console: it reads pages, keeps cookies, and sends forms."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

from httpx import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette

from app.platform.console.access import ConsoleSettings
from app.platform.console.app import create_console
from app.platform.runtime import Context
from app.platform.service import Service
from tests.fixtures import database_settings, eventually

ORIGIN = "http://127.0.0.1:8003"


@dataclass
class Form:
    """A form of a page: where it leads, how, and its fields."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.forms: list[Form] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "a":
            self.links.append(found.get("href", ""))
        if tag == "form":
            self.forms.append(Form(found.get("action", ""), found.get("method", "get")))
        if tag in ("input", "button") and "name" in found and self.forms:
            self.forms[-1].fields[found["name"]] = found.get("value", "")

    def handle_data(self, data: str) -> None:
        self.words += data.split()


@dataclass(frozen=True)
class Page:
    """A page as a person reads it."""

    response: Response
    text: str
    links: list[str]
    forms: list[Form]
    tags: list[str]

    @property
    def status(self) -> int:
        return self.response.status_code

    def form(self, action: str) -> Form:
        """Return the form that leads to a URL with this end."""
        (found,) = [form for form in self.forms if form.action.endswith(action)]
        return found


class Browser:
    """A browser at a console."""

    def __init__(self, app: Starlette, client: tuple[str, int] = ("127.0.0.1", 50_000)) -> None:
        self.app = app
        self.http = AsyncClient(transport=ASGITransport(app, client=client), base_url=ORIGIN)

    async def get(self, path: str, **headers: str) -> Page:
        return _page(await self.http.get(path, headers=headers))

    async def submit(self, page: Page, action: str, **changes: str) -> Page:
        """Send the form of `page` that leads to `action`, and follow where it leads."""
        form = page.form(action)
        url = page.response.url.join(form.action)
        return await self.post(str(url), form.fields | changes)

    async def ended(self, job: Page) -> Page:
        """Return the page of a job once it has ended."""
        path = job.response.url.path
        return await eventually(
            lambda: self.get(path), lambda page: "running, begun" not in page.text
        )

    async def post(self, url: str, fields: dict[str, str]) -> Page:
        return _page(await self.http.post(url, data=fields, follow_redirects=True))


def _page(response: Response) -> Page:
    reader = _Reader()
    reader.feed(response.text)
    return Page(response, " ".join(reader.words), reader.links, reader.forms, reader.tags)


def console_for(
    service: Service, context: Context, url: str, settings: ConsoleSettings | None = None
) -> Starlette:
    """Create a console of `service` on the database at `url`; actions are allowed unless said."""
    settings = settings or ConsoleSettings(console_actions=True, _env_file=None)
    return create_console(service, context, database_settings(url), settings, [])
