import pytest
from httpx import AsyncClient

from tests.contract.api import assert_problem, place, sign_up, unique
from tests.eventually import eventually


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
