import re
from typing import Any

import pytest
from httpx import AsyncClient

from tests.api import PROBLEM, assert_problem, pointers
from tests.orders.api import new_user

JSON = {"content-type": "application/json"}


async def test_a_route_that_is_not_there(client: AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404)


async def test_a_path_is_quoted_in_the_problem(client: AsyncClient) -> None:
    assert_problem(await client.get("/no%20where/%C3%A9"), 404)


async def test_a_method_that_is_not_there(client: AsyncClient) -> None:
    answer = await client.delete("/users")
    assert_problem(answer, 405)
    assert "POST" in answer.headers["allow"]


async def test_a_body_of_another_kind_is_refused(client: AsyncClient) -> None:
    form = "application/x-www-form-urlencoded"  # what curl sends
    for kind in ["text/plain", form]:
        answer = await client.post("/users", content=b"{}", headers={"content-type": kind})
        assert "Content-Type: application/json" in assert_problem(answer, 415)["detail"]


async def test_malformed_json_is_reported_with_its_position(client: AsyncClient) -> None:
    answer = await client.post("/users", content=b"{bad", headers=JSON)
    (field,) = assert_problem(answer, 422)["errors"]
    assert (field["location"], field["pointer"]) == ("body", "")
    assert field["detail"].startswith("not JSON at character 2: ")


async def test_the_name_of_a_field_is_escaped(client: AsyncClient) -> None:
    answer = await client.post("/users", json={"a/~b": 1})
    fields = [field["pointer"] for field in assert_problem(answer, 422)["errors"]]
    assert "/a~1~0b" in fields


async def test_text_that_is_no_unicode_is_answered(client: AsyncClient) -> None:
    answer = await client.post("/users", content=b'{"\\ud800": "\\udfff"}', headers=JSON)
    assert_problem(answer, 422)
    assert (await client.get("/inventory/%ED%A0%80")).status_code == 422


async def test_a_query_parameter_that_does_not_exist_is_refused(client: AsyncClient) -> None:
    answer = await client.get("/orders?user=1&limit=1")
    assert assert_problem(answer, 422)["errors"] == [
        {
            "location": "query",
            "pointer": "/user",
            "detail": "unknown; there are: user_id, status, cursor, limit",
        }
    ]
    answer = await client.post("/users?dry-run=1&x=", json=new_user())
    problem = assert_problem(answer, 422)
    assert pointers(problem) == ["query /dry-run", "query /x"]
    assert "there are none here" in problem["detail"]


async def test_each_documented_query_parameter_is_known(
    client: AsyncClient, openapi: dict[str, Any]
) -> None:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            names = [p["name"] for p in parameters if p["in"] == "query"]
            for name in names:
                url = re.sub(r"{\w+}", "1", path)
                answer = await client.request(method, url, params={name: "1"})
                assert "unknown" not in answer.text, (path, name)


async def test_a_problem_says_where_and_what(client: AsyncClient) -> None:
    answer = await client.post("/posts", json={"author_id": 1, "title": "t"})
    assert assert_problem(answer, 422)["errors"] == [
        {"location": "body", "pointer": "/body", "detail": "Field required"}
    ]


@pytest.fixture
async def openapi(client: AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


def business_operations(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        operation
        for path, methods in openapi["paths"].items()
        if re.match("/(users|posts|orders|inventory)", path)
        for operation in methods.values()
    ]


async def test_every_operation_documents_its_problems(openapi: dict[str, Any]) -> None:
    operations = business_operations(openapi)
    assert operations
    for operation in operations:
        assert {"408", "413", "422", "500", "503"} <= operation["responses"].keys()
        assert ("415" in operation["responses"]) == ("requestBody" in operation)
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == [PROBLEM]


async def test_every_operation_has_a_summary_and_a_tag(openapi: dict[str, Any]) -> None:
    for operation in business_operations(openapi):
        assert operation["tags"]
        assert operation["summary"]
        assert operation["description"]


async def test_answers_document_their_headers(openapi: dict[str, Any]) -> None:
    paths = openapi["paths"]
    assert paths["/orders"]["post"]["responses"]["201"]["headers"].keys() == {"Location", "ETag"}
    assert paths["/orders/{order_id}"]["get"]["responses"]["200"]["headers"].keys() == {"ETag"}


async def test_every_reference_of_the_document_leads_somewhere(openapi: dict[str, Any]) -> None:
    schemas = openapi["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(openapi)))
    assert "Problem" in references
    assert references <= schemas.keys()
    assert "HTTPValidationError" not in schemas
