"""Each parameter and field of the OpenAPI document, sent the ends of its type and worse."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from app import wiring

LONGEST_ANSWER = 64 * 1024
JSON = {"content-type": "application/json"}
TOO_LARGE = b" " * 1_000_001  # by one byte more than HTTP_MAX_BODY_BYTES allows by default

NUMBERS = [
    "0",
    "-1",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
]
TEXTS = [
    *NUMBERS,
    *("", " ", "1_000", "+1", "١٢", "1.0", "1e5", "true", "null", "NaN", "x" * 20_000),
    *("\0", "\ud800", "\u202e", "%00", "' OR 1=1 --", "../../etc/passwd"),
    "9999-12-31T23:59:59-00:01",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31",
    "0001-01-01",
    "2026-02-30T25:61:61Z",
]
# As they stand in the body: some of them no parser writes.
FRAGMENTS = [
    *(json.dumps(text) for text in TEXTS),
    *NUMBERS,
    *("1.5", "1e400", "-1e400", "1" * 5_000, "NaN", "Infinity", "true", "null", "{}", "[]", '[""]'),
    *('{"a": {"b": [1]}}', '{"": ""}', "[" + "0," * 199_999 + "0]"),
]
BODIES = [
    b"",
    b"{",
    b"\xff\xfe",
    b'{"a": "\xff"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"null",
    b'"' + b"a" * 300_000 + b'"',
]
FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "uuid": "00000000-0000-4000-8000-000000000001",
}


class Operation(NamedTuple):
    """A route and a method of the document, and what a valid request consists of."""

    method: str
    path: str
    documented: set[int]
    parameters: list[dict[str, Any]]
    body: dict[str, Any] | None
    query: dict[str, str]


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            content = described.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            yield Operation(
                method.upper(),
                path,
                {int(status) for status in described["responses"]},
                described.get("parameters", []),
                None if schema is None else example(document, schema),
                {},
            )


async def with_fewest_parameters(
    client: AsyncClient, document: dict[str, Any], operation: Operation
) -> Operation:
    """With a query parameter only where the request is refused without: a route may need one of several."""
    optional = [
        {parameter["name"]: str(example(document, parameter["schema"]))}
        for parameter in operation.parameters
        if parameter["in"] == "query"
    ]
    for query in [{}, *optional]:
        found = operation._replace(query=query)
        answer = await client.request(found.method, url(found), json=found.body)
        if answer.status_code != 422:
            return found
    return operation


def example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A value that `schema` takes."""
    if "$ref" in schema:
        return example(document, document["components"]["schemas"][schema["$ref"].split("/")[-1]])
    if "examples" in schema:
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example(document, schema["anyOf"][0])
    if schema.get("type") == "object":
        return {name: example(document, part) for name, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [example(document, schema["items"])]
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    return {"integer": schema.get("minimum", 1), "boolean": True}.get(schema["type"], "a")


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of each field of `value`, at every depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in inner:
        yield (*path, name)
        if isinstance(part, dict | list):
            yield from places(part, (*path, name))


def replaced(value: Any, path: tuple[str | int, ...], fragment: str) -> bytes:
    """`value` as JSON, with `fragment` at `path`."""
    copy = json.loads(json.dumps(value))
    part = copy
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = "\u2603here\u2603"
    text = json.dumps(copy, ensure_ascii=False).replace('"\u2603here\u2603"', fragment)
    return text.encode()


def url(operation: Operation, name: str | None = None, text: str = "") -> str:
    """The operation's URL, with `text` for the path's or the query's parameter `name`."""
    path, query = operation.path, operation.query
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            own = text if parameter["name"] == name else "1"
            quoted = quote(own, safe="", errors="surrogatepass")
            path = path.replace(f"{{{parameter['name']}}}", quoted)
        elif parameter["name"] == name:
            query = {parameter["name"]: text}
    return f"{path}?{urlencode(query, errors='surrogatepass')}" if query else path


def addresses_another_path(parameter: dict[str, Any], text: str) -> bool:
    """Whether `text` as this parameter makes another path of the operation's: none, or a longer."""
    return parameter["in"] == "path" and (not text or "/" in text)


def check(operation: Operation, answer: Response, sent: object) -> None:
    context = f"{operation.method} {operation.path} with {str(sent)[:120]!r}: {answer.text[:300]}"
    assert answer.status_code in operation.documented, f"{answer.status_code}: {context}"
    if answer.status_code == 404:  # of something with this id; the router's own has no type
        assert "{" in operation.path, context
        assert answer.json()["type"] == "urn:problem-type:not-found", context
    # A version that is still to come is waited for, which is no failure of the service.
    awaited = answer.status_code == 503 and "min_version" in str(sent)
    assert answer.status_code < 500 or (awaited and "retry-after" in answer.headers), context
    check_length(answer, context)


def check_length(answer: Response, context: str) -> None:
    assert len(answer.content) < LONGEST_ANSWER, f"{len(answer.content)} bytes: {context}"


def check_unrouted(answer: Response, context: str) -> None:
    """The router's answer to a path of no operation; a redirect is to the path without a slash."""
    assert answer.status_code in {307, 404, 405}, f"{answer.status_code}: {context}"
    check_length(answer, context)


@pytest.fixture(scope="session")
async def documented(live_app: FastAPI, client: AsyncClient) -> list[Operation]:
    apart = ("/health", "/metrics")  # they take no input, and metrics are as long as they are many
    document = live_app.openapi()
    found = [
        await with_fewest_parameters(client, document, operation)
        for operation in operations(document)
        if not operation.path.startswith(apart)
    ]
    if not wiring.service.routers:
        pytest.skip("no component of this service has a route")
    assert any(operation.body for operation in found)
    return found


async def test_base_requests_pass_validation(
    client: AsyncClient, documented: list[Operation]
) -> None:
    """Otherwise the ends of one part are refused for another part, and never reach the service."""
    for operation in documented:
        answer = await client.request(operation.method, url(operation), json=operation.body)
        check(operation, answer, operation.body)
        assert answer.status_code != 422, (operation.path, answer.text)


async def test_an_operation_that_is_not_routed_is_noticed(
    client: AsyncClient, documented: list[Operation]
) -> None:
    """Its 404, 405 or redirect is none of the answers that the document allows it."""
    for operation in documented:
        wrong_path, slash = f"{operation.path}/no/where", f"{operation.path}/"
        wrong_method = "PUT"
        for method, path in [
            (operation.method, wrong_path),
            (operation.method, slash),
            (wrong_method, operation.path),
        ]:
            misrouted = operation._replace(method=method, path=path)
            answer = await client.request(method, url(misrouted), json=operation.body)
            with pytest.raises(AssertionError):
                check(misrouted, answer, "its example")


async def test_too_large_bodies_are_refused(
    client: AsyncClient, documented: list[Operation]
) -> None:
    """By every operation, also those that take no body."""
    for operation in documented:
        answer = await client.request(operation.method, url(operation), content=TOO_LARGE)
        assert answer.status_code == 413
        check(operation, answer, "a body that is too large")


async def test_unsafe_operations_take_an_idempotency_key(documented: list[Operation]) -> None:
    for operation in documented:
        if operation.method not in {"GET", "HEAD"}:
            names = {parameter["name"] for parameter in operation.parameters}
            assert "Idempotency-Key" in names, f"{operation.method} {operation.path}"


async def test_unsafe_operations_refuse_two_idempotency_keys(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        if operation.method not in {"GET", "HEAD"}:
            keys = [("If-Match", "*"), *(("Idempotency-Key", key) for key in ("one", "two"))]
            answer = await client.request(
                operation.method, url(operation), json=operation.body, headers=keys
            )
            check(operation, answer, "two keys")
            assert answer.status_code == 422, f"{operation.path}: {answer.text[:300]}"
            assert [field["pointer"] for field in answer.json()["errors"]] == ["/Idempotency-Key"]


async def test_parameters_take_the_ends_of_their_types(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        for parameter in operation.parameters:
            if parameter["in"] not in {"path", "query"}:
                continue
            for text in TEXTS:
                answer = await client.request(
                    operation.method, url(operation, parameter["name"], text), json=operation.body
                )
                if addresses_another_path(parameter, text):
                    check_unrouted(answer, f"{operation.method} {operation.path} with {text!r}")
                else:
                    check(operation, answer, (parameter["name"], text))


async def test_headers_take_the_ends_of_their_types(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        for parameter in operation.parameters:
            if parameter["in"] != "header":
                continue
            for text in [t for t in TEXTS if t.isascii() and "\0" not in t]:
                answer = await client.request(
                    operation.method,
                    url(operation),
                    json=operation.body,
                    headers={"If-Match": "*"} | {parameter["name"]: text},
                )
                check(operation, answer, (parameter["name"], text))


async def test_fields_take_the_ends_of_their_types(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        for place in places(operation.body or {}):
            for fragment in FRAGMENTS:
                body = replaced(operation.body, place, fragment)
                answer = await client.request(
                    operation.method, url(operation), content=body, headers=JSON
                )
                check(operation, answer, (place, fragment))


async def test_bodies_that_are_no_json_are_refused(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        for body in BODIES if operation.body else []:
            answer = await client.request(
                operation.method, url(operation), content=body, headers=JSON
            )
            check(operation, answer, body[:40])
            assert answer.status_code >= 400


async def test_every_get_route_answers_head(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for operation in documented:
        if operation.method == "GET":
            got, head = await client.get(url(operation)), await client.head(url(operation))
            assert (head.status_code, head.content) == (got.status_code, b"")


async def test_allow_names_every_method_of_a_path(
    client: AsyncClient, documented: list[Operation]
) -> None:
    for path in {operation.path for operation in documented}:
        methods = {operation.method for operation in documented if operation.path == path}
        methods |= {"HEAD"} if "GET" in methods else set()
        one = next(operation for operation in documented if operation.path == path)
        answer = await client.request("TRACE", url(one))
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == methods
