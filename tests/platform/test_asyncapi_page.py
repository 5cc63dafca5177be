"""The page `/asyncapi`, which only `app dev` serves."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin

import pytest
from httpx import ASGITransport, AsyncClient

from app import wiring
from app.platform.dev.application import create_dev_app
from app.platform.http.app import create_app
from app.platform.service import Role

PAGE = "http://service/asyncapi"


@pytest.fixture
async def http() -> AsyncIterator[AsyncClient]:
    app = create_dev_app(wiring.service)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        yield client


async def test_everything_on_the_page_is_served_by_the_service(http: AsyncClient) -> None:
    page = (await http.get(PAGE)).text
    urls = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(urls) == 4
    assert re.findall(r"(?:https?:)?//\w", page) == []
    for url in urls:
        assert (await http.get(urljoin(PAGE, url))).status_code == 200


async def test_the_page_shows_the_topics_of_the_service(http: AsyncClient) -> None:
    document = (await http.get(f"{PAGE}.json")).json()

    assert document["asyncapi"] == "3.1.0"
    assert len(document["channels"]) == len(wiring.service.events)


async def test_the_http_documentation_links_to_the_page(http: AsyncClient) -> None:
    assert "(asyncapi)" in (await http.get("/openapi.json")).json()["info"]["description"]


async def test_other_commands_do_not_serve_the_page() -> None:
    app = create_app(wiring.service, set(Role))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        assert (await client.get(PAGE)).status_code == 404
        assert "asyncapi" not in (await client.get("/openapi.json")).text
