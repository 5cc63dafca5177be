"""A real browser, which reaches nothing but the service."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Route, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)
# Browsers and Swagger UI trust localhost more than other names.
HOST = "service.test"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve `app` in a thread during the block; its URL, as the browser knows it."""
    with socket.create_server(("127.0.0.1", 0)) as at:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield f"http://{HOST}:{at.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Browser:
    """A browser that blocks requests to other hosts. It records them, and errors of scripts and pages."""

    def __init__(self, context: BrowserContext) -> None:
        self.page = context.new_page()
        self.blocked: list[str] = []
        self.errors: list[str] = []
        self.console: list[str] = []
        self.context = context
        context.route("**/*", self._filter)
        context.on("weberror", lambda found: self.errors.append(str(found.error)))
        self.page.on(
            "console", lambda line: line.type == "error" and self.console.append(line.text)
        )

    def _filter(self, route: Route) -> None:
        if urlsplit(route.request.url).hostname == HOST:
            route.continue_()
        else:
            self.blocked.append(route.request.url)
            route.abort()


@pytest.fixture
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        reason = "there is no Chromium: install the package chromium of your system"
        if os.environ.get("REQUIRE_REAL_SERVERS") == "1":
            pytest.fail(f"{reason} (REQUIRE_REAL_SERVERS=1 forbids to skip this)", pytrace=False)
        pytest.skip(reason)
    arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {HOST} 127.0.0.1, MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield Browser(chromium.new_context())
        finally:
            chromium.close()
