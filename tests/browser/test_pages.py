"""The pages `/docs` and `/asyncapi` in Chromium, which reaches nothing but the service."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from app import wiring
from app.platform.dev import asyncapi_page
from app.platform.http.app import create_app
from app.platform.service import Role
from tests.browsers import Browser, serving


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """A service without its database and its Kafka, which the pages do not need."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
        environment.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
        app = create_app(wiring.service, {Role.API})
        asyncapi_page.install(app, wiring.service)
        with serving(app) as url:
            yield url


def test_the_http_api_is_shown_without_other_hosts(browser: Browser, origin: str) -> None:
    browser.page.goto(f"{origin}/docs")

    expect(browser.page.locator(".opblock-summary-path", has_text="/orders").first).to_be_visible()
    browser.page.locator("#operations-operations-ready_health_ready_get").click()
    browser.page.get_by_role("button", name="Try it out").click()
    browser.page.get_by_role("button", name="Execute").click()
    status = browser.page.locator(".live-responses-table .response .response-col_status")
    expect(status).to_contain_text("503", timeout=30_000)
    assert browser.blocked == browser.errors == []


def test_the_events_are_shown_without_other_hosts(browser: Browser, origin: str) -> None:
    browser.page.goto(f"{origin}/docs")
    with browser.page.expect_popup() as opened:
        browser.page.get_by_role("link", name="Events that the service sends").click()

    assert opened.value.url == f"{origin}/asyncapi"
    expect(opened.value.get_by_role("heading", name="send.user.created")).to_be_visible()
    assert browser.blocked == browser.errors == []
