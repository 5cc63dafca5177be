"""Steps of tests over HTTP."""

import secrets
from typing import Any

from httpx import Response

PROBLEM = "application/problem+json"


def unique(word: str) -> str:
    # Not `random`, which a test runner may seed alike in each session on one database.
    return f"{word}-{secrets.token_hex(6)}"


def assert_problem(answer: Response, status: int) -> dict[str, Any]:
    """The body of an answer that tells a problem as RFC 9457 wants it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["type"]
    assert problem["instance"] == answer.request.url.raw_path.decode().split("?")[0]
    return problem


def pointers(problem: dict[str, Any]) -> list[str]:
    return [f"{field['location']} {field['pointer']}" for field in problem["errors"]]
