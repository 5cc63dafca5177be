"""The console in Chromium, on real servers: journeys, keyboard, narrow screens, and axe."""

import asyncio
import os
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from app import wiring
from app.platform.database.unit_of_work import UnitOfWork
from app.platform.dev.application import create_dev_app, prepare
from app.platform.dev.servers import Servers
from app.platform.kafka.errors import PermanentError
from app.platform.kafka.subscription import Subscription
from app.platform.service import Component, Service
from app.users.events import UserCreated
from tests.browsers import HOST, Browser, serving
from tests.fixtures import temporary_database, unique_service_name

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
HOSTILE = "<b onclick=alert(1)>ann</b>"

broken = threading.Event()


async def greet(event: UserCreated, uow: UnitOfWork) -> None:
    """Refuse everybody while it is broken."""
    if broken.is_set():
        raise PermanentError(f"no greeting for {HOSTILE}")


SERVICE = Service(
    [
        *wiring.service.components,
        Component("greetings", subscriptions=[Subscription("greeter", {UserCreated: greet})]),
    ]
)


@pytest.fixture(scope="module")
def origin(servers: Servers) -> Iterator[str]:
    """The service with all its roles and its console, as `app dev` runs it."""
    with (
        pytest.MonkeyPatch.context() as environment,
        temporary_database(servers.database_url) as database_url,
    ):
        environment.setenv("DATABASE_URL", database_url)
        environment.setenv("KAFKA_BOOTSTRAP_SERVERS", servers.kafka_bootstrap_servers)
        environment.setenv("CONSOLE_HOSTS", HOST)
        name = unique_service_name()
        for variable in ("SERVICE_NAME", "KAFKA_GROUP_ID", "KAFKA_CLIENT_ID"):
            environment.setenv(variable, name)
        asyncio.run(prepare(SERVICE, own_broker=True))
        app = create_dev_app(SERVICE)
        with serving(app) as url:
            yield url


def sign_up(origin: str, name: str) -> None:
    local = origin.replace(HOST, "127.0.0.1")
    body = {"email": f"{name}@example.com", "username": name}
    assert httpx.post(f"{local}/users", json=body).status_code == 201


def reload_until(page: Page, text: str) -> None:
    """Load the page anew until it has `text`."""
    for _ in range(60):
        if page.get_by_text(text).count():
            return
        page.wait_for_timeout(250)
        page.reload()
    expect(page.get_by_text(text).first).to_be_visible()


def photograph(browser: Browser, name: str) -> None:
    """Store a picture of the page for the documentation, if SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        browser.page.set_viewport_size({"width": 1440, "height": 720})
        browser.page.screenshot(path=Path(folder) / f"console-{name}.png")


def test_a_failure_is_found_understood_and_put_right(browser: Browser, origin: str) -> None:
    page = browser.page
    broken.set()
    sign_up(origin, "ann")
    page.goto(f"{origin}/console")
    page.get_by_role("link", name="Dead letters").click()
    reload_until(page, "PermanentError")
    photograph(browser, "letters")
    page.get_by_role("region", name="Letters").get_by_role("link").first.click()
    expect(page.get_by_text(f"no greeting for {HOSTILE}").first).to_be_visible()
    expect(page.get_by_text("ann@example.com").first).to_be_visible()
    letter = page.url

    broken.clear()
    page.get_by_role("link", name="Replay").first.click()
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("applied 1, failed again 0, pending 0")).to_be_visible(timeout=30_000)

    page.goto(letter)
    page.locator("dl a[href*=story]").click()
    expect(page.get_by_role("region", name="Timeline")).to_be_visible()
    photograph(browser, "story")
    page.locator("table a[href*=inbox]").first.click()
    row = page.get_by_role("row").filter(has_text="greeter")
    expect(row).not_to_contain_text("not applied")
    assert browser.blocked == browser.errors == browser.console == []


def test_a_rebuild_shows_its_progress(browser: Browser, origin: str) -> None:
    page = browser.page
    page.goto(f"{origin}/console/projections")
    page.get_by_role("button", name="Rebuild").first.click()
    expect(page.get_by_text("rebuilt from")).to_be_visible(timeout=30_000)
    assert browser.blocked == browser.errors == browser.console == []


def test_a_topic_is_followed_live(browser: Browser, origin: str) -> None:
    page = browser.page
    page.goto(f"{origin}/console/topics")
    page.get_by_role("link", name="user.created", exact=False).first.click()
    page.get_by_role("link", name="Follow live").click()
    expect(page.locator("#state")).to_have_text("following", timeout=15_000)
    for name in ("eve", "bob"):
        sign_up(origin, name)
    expect(page.locator("tbody tr")).to_have_count(2, timeout=30_000)
    assert browser.blocked == browser.errors == browser.console == []


def test_the_keyboard_is_enough(browser: Browser, origin: str) -> None:
    page = browser.page
    page.goto(f"{origin}/console/")
    photograph(browser, "overview")
    page.keyboard.press("Tab")
    expect(page.get_by_text("To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto(f"{origin}/console/")
    for _ in range(3):  # past the link to the content and the first page
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Topics")
    assert browser.blocked == browser.errors == browser.console == []


PAGES = "topics letters outbox projections streams inbox story events events/user.created"
PATHS = ("", *PAGES.split())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_narrow_screens_and_pass_axe(browser: Browser, origin: str, scheme: str) -> None:
    page = browser.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    for path in PATHS:
        page.goto(f"{origin}/console/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        page.evaluate(AXE)
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 5
        serious = [x["id"] for x in found["violations"] if x["impact"] in ("serious", "critical")]
        assert serious == [], path
    assert browser.blocked == browser.errors == browser.console == []
