"""The page `/docs`: complete, and served by the service alone."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app import wiring
from app.platform.http.app import create_app
from app.platform.service import Role

PAGE = "http://service/docs"


class References(HTMLParser):
    """Collects the URLs that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attrs if name in {"src", "href"}]


@pytest.fixture
def app() -> FastAPI:
    return create_app(wiring.service, {Role.API})


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        yield client


async def test_every_asset_of_the_page_is_served_by_the_service(http: AsyncClient) -> None:
    page = (await http.get("/docs")).text
    references = References()
    references.feed(page)

    assert len(references.urls) == 3
    for url in references.urls:
        assert urljoin(PAGE, url).startswith("http://service/")
        answer = await http.get(urljoin(PAGE, url))
        assert answer.status_code == 200
        assert len(answer.content) > 100
    assert (
        (await http.get("/docs/assets/swagger-ui.css"))
        .headers["content-type"]
        .startswith("text/css")
    )


async def test_the_page_names_no_other_host(http: AsyncClient) -> None:
    page = (await http.get("/docs")).text

    assert re.findall(r"(?:https?:)?//\w[\w.]*", page) == []


async def test_styles_load_nothing_from_other_hosts(http: AsyncClient) -> None:
    styles = (await http.get("/docs/assets/swagger-ui.css")).text

    assert re.findall(r"@import|url\(\s*(?![\"']?data:)\S{0,40}", styles) == []


async def test_the_page_shows_the_document_of_the_service(http: AsyncClient) -> None:
    page = (await http.get("/docs")).text
    (url,) = re.findall(r"url: '([^']+)'", page)

    assert (await http.get(urljoin(PAGE, url))).json()["openapi"].startswith("3.")


async def test_the_page_works_below_a_prefix(app: FastAPI) -> None:
    transport = ASGITransport(app, root_path="/shop")
    async with AsyncClient(transport=transport, base_url="http://service") as client:
        page = (await client.get("/shop/docs")).text
        references = References()
        references.feed(page)
        for url in [*references.urls, *re.findall(r"url: '([^']+)'", page)]:
            address = urljoin("http://service/shop/docs", url)
            assert address.startswith("http://service/shop/")
            assert (await client.get(address)).status_code == 200
    assert "window.location.origin + '/shop/docs/oauth2-redirect'" in page


async def test_a_known_asset_is_not_sent_again(http: AsyncClient) -> None:
    url = "/docs/assets/swagger-ui.css"
    etag = (await http.get(url)).headers["etag"]

    assert (await http.get(url, headers={"If-None-Match": etag})).status_code == 304


@pytest.mark.parametrize("name", ["none.js", "..%2f__init__.py", "%2e%2e", "%00"])
async def test_an_unknown_asset_is_not_found(http: AsyncClient, name: str) -> None:
    answer = await http.get(f"/docs/assets/{name}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_no_page_of_the_framework_is_left(http: AsyncClient) -> None:
    assert (await http.get("/redoc")).status_code == 404
