"""The HTTP contract of users."""

import asyncio

import pytest
from httpx import AsyncClient

from tests.api import assert_problem, pointers, unique
from tests.fixtures import eventually
from tests.orders.api import new_user, sign_up


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
async def test_email_and_username_of_another_user_are_taken(
    client: AsyncClient, field: str
) -> None:
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
async def test_an_invalid_user_id_is_refused(client: AsyncClient, user_id: str) -> None:
    assert_problem(await client.get(f"/users/{user_id}"), 422)


async def test_a_repeated_sign_up_gets_the_same_answer(client: AsyncClient) -> None:
    user, headers = new_user(), {"Idempotency-Key": unique("key")}
    first = await client.post("/users", json=user, headers=headers)
    again = await client.post("/users", json=user, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]


async def test_a_key_of_another_sign_up_is_refused(client: AsyncClient) -> None:
    headers = {"Idempotency-Key": unique("key")}
    await client.post("/users", json=new_user(), headers=headers)
    answer = await client.post("/users", json=new_user(), headers=headers)
    assert pointers(assert_problem(answer, 422)) == ["header /Idempotency-Key"]
