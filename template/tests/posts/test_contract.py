"""The HTTP contract of posts."""

import json

import pytest
from httpx import AsyncClient

from tests.api import assert_problem, pointers, unique
from tests.fixtures import eventually
from tests.orders.api import sign_up


async def test_a_user_publishes_a_post(client: AsyncClient) -> None:
    post = {"author_id": await sign_up(client), "title": "On engines", "body": "They weave.\n"}
    answer = await client.post("/posts", json=post)
    assert answer.status_code == 201
    published = answer.json()
    assert published == post | {"id": published["id"]}
    assert isinstance(published["id"], int)


async def test_posts_are_counted_on_the_profile(client: AsyncClient) -> None:
    author = await sign_up(client)
    for number in range(3):
        await client.post("/posts", json={"author_id": author, "title": f"{number}", "body": "…"})

    async def posts_published() -> int:
        profile = (await client.get(f"/users/{author}")).json()["profile"]
        return profile["posts_published"] if profile else 0

    assert await eventually(posts_published, lambda number: number >= 3) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("author_id", 2**62),
        ("author_id", 2**64),
        ("author_id", 0),
        ("author_id", None),
        ("title", ""),
        ("title", "   "),
        ("title", "nul\0"),
        ("title", "\ud800"),
        ("title", "t" * 201),
        ("body", "nul\0"),
        ("tags", []),
    ],
)
async def test_a_wrong_field_of_a_post_is_named(
    client: AsyncClient, field: str, value: object
) -> None:
    post = {"author_id": await sign_up(client), "title": "On engines", "body": "They weave."}
    # Not httpx's JSON, which cannot send a lone surrogate.
    answer = await client.post(
        "/posts",
        content=json.dumps(post | {field: value}),
        headers={"content-type": "application/json"},
    )
    assert pointers(assert_problem(answer, 422)) == [f"body /{field}"]


async def test_a_repeated_post_is_published_once(client: AsyncClient) -> None:
    post = {"author_id": await sign_up(client), "title": "On engines", "body": "They weave."}
    headers = {"Idempotency-Key": unique("key")}
    first = await client.post("/posts", json=post, headers=headers)
    again = await client.post("/posts", json=post, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
