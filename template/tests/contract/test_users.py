"""The HTTP contract of users, their posts, and the inventory that orders reserve."""

import asyncio
import json

import pytest
from httpx import AsyncClient

from tests.contract.api import assert_problem, new_user, place, pointers, sign_up, unique
from tests.fixtures import eventually


async def test_a_user_signs_up(client: AsyncClient) -> None:
    user = new_user(phone="+442079460123")
    answer = await client.post("/users", json=user)
    assert answer.status_code == 201
    created = answer.json()
    assert created == user | {"id": created["id"], "profile": None}
    assert isinstance(created["id"], int)
    assert answer.headers["location"] == f"/users/{created['id']}"


async def test_the_phone_number_is_optional(client: AsyncClient) -> None:
    answer = await client.post("/users", json=new_user())
    assert answer.json()["phone"] is None


async def test_the_profile_appears_once_the_event_was_consumed(client: AsyncClient) -> None:
    user_id = await sign_up(client)

    async def profile() -> object:
        return (await client.get(f"/users/{user_id}")).json()["profile"]

    made = await eventually(profile)
    assert isinstance(made, dict)
    assert made["created_at"]
    assert made["posts_published"] == 0


@pytest.mark.parametrize("field", ["email", "username"])
async def test_what_another_user_has_is_taken(client: AsyncClient, field: str) -> None:
    first = new_user()
    await client.post("/users", json=first)
    answer = await client.post("/users", json=new_user(**{field: first[field]}))
    assert first[field] in assert_problem(answer, 409)["detail"]


async def test_an_email_address_is_taken_in_any_spelling(client: AsyncClient) -> None:
    first = new_user()
    await client.post("/users", json=first)
    answer = await client.post("/users", json=new_user(email=first["email"].upper()))
    assert_problem(answer, 409)


async def test_of_sign_ups_at_once_with_one_name_a_single_one_wins(client: AsyncClient) -> None:
    name = unique("racer")
    answers = await asyncio.gather(
        *(client.post("/users", json=new_user(username=name)) for _ in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "nobody"),
        ("email", "a@b\0.example.com"),
        ("email", f"{'a' * 400}@example.com"),
        ("username", ""),
        ("username", "two words"),
        ("username", "nul\0"),
        ("username", "u" * 51),
        ("username", 7),
        ("phone", "12345"),
        ("phone", "+४४२०७९४६०१२३"),
        ("nickname", "unknown field"),
    ],
)
async def test_a_wrong_field_is_named(client: AsyncClient, field: str, value: object) -> None:
    answer = await client.post("/users", json=new_user(**{field: value}))
    assert pointers(assert_problem(answer, 422)) == [f"body /{field}"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'"text"', b"[" * 100_000])
async def test_a_body_that_is_no_user_is_refused(client: AsyncClient, body: bytes) -> None:
    answer = await client.post("/users", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code)


async def test_a_user_who_is_not_there(client: AsyncClient) -> None:
    for user_id in (0, -1, 2**62, 2**63 - 1):
        assert_problem(await client.get(f"/users/{user_id}"), 404)


@pytest.mark.parametrize("user_id", ["ada", str(2**63), "9" * 5_000, "%00", "1.5"])
async def test_what_is_no_user_id_is_refused(client: AsyncClient, user_id: str) -> None:
    assert_problem(await client.get(f"/users/{user_id}"), 422)


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


async def test_orders_reserve_what_they_order(client: AsyncClient) -> None:
    tea, cup = unique("tea"), unique("cup")
    user_id = await sign_up(client)
    await place(client, user_id, items=[item(tea, 2), item(cup, 1), item(tea, 5)])
    await place(client, user_id, items=[item(cup, 3)])

    async def reserved() -> tuple[int, int]:
        answers = [await client.get(f"/inventory/{sku}") for sku in (tea, cup)]
        return answers[0].json()["reserved"], answers[1].json()["reserved"]

    assert await eventually(reserved, lambda found: found >= (7, 4)) == (7, 4)


async def test_of_a_sku_that_nobody_ordered_nothing_is_reserved(client: AsyncClient) -> None:
    sku = unique("sku")
    answer = await client.get(f"/inventory/{sku}")
    assert answer.status_code == 200
    assert answer.json() == {"sku": sku, "reserved": 0}


@pytest.mark.parametrize("sku", ["%00", "two%20words", "s" * 65])
async def test_what_is_no_sku_is_refused(client: AsyncClient, sku: str) -> None:
    assert_problem(await client.get(f"/inventory/{sku}"), 422)


def item(sku: str, quantity: int) -> dict[str, object]:
    return {"sku": sku, "quantity": quantity, "unit_price": "1.00"}


async def test_a_repeated_sign_up_gets_the_same_answer(client: AsyncClient) -> None:
    user, headers = new_user(), {"Idempotency-Key": unique("key")}
    first = await client.post("/users", json=user, headers=headers)
    again = await client.post("/users", json=user, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]


async def test_a_repeated_post_is_published_once(client: AsyncClient) -> None:
    post = {"author_id": await sign_up(client), "title": "On engines", "body": "They weave."}
    headers = {"Idempotency-Key": unique("key")}
    first = await client.post("/posts", json=post, headers=headers)
    again = await client.post("/posts", json=post, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()


async def test_a_key_of_another_sign_up_is_refused(client: AsyncClient) -> None:
    headers = {"Idempotency-Key": unique("key")}
    await client.post("/users", json=new_user(), headers=headers)
    answer = await client.post("/users", json=new_user(), headers=headers)
    assert pointers(assert_problem(answer, 422)) == ["header /Idempotency-Key"]
