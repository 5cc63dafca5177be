"""Problem details for HTTP APIs (RFC 9457): the format, and its place in the OpenAPI document."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
_SCHEMAS = "#/components/schemas/{model}"


class FieldProblem(BaseModel):
    """What is wrong with one part of the request."""

    location: str = Field(examples=["body"], description="body, path, query or header")
    pointer: str = Field(examples=["/items/0/quantity"], description="JSON Pointer within location")
    detail: str = Field(examples=["Input should be greater than or equal to 1"])

    @classmethod
    def of(cls, place: Sequence[str | int], detail: str) -> "FieldProblem":
        location, *path = place
        pointer = "".join(f"/{_escaped(str(part))}" for part in path)
        return cls(location=str(location), pointer=pointer, detail=detail)

    @property
    def place(self) -> str:
        return f"{self.location} {self.pointer}" if self.pointer else self.location


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field("about:blank", examples=["urn:problem-type:version-conflict"])
    title: str = Field(examples=["The thing has changed meanwhile"])
    status: int = Field(examples=[412])
    detail: str | None = Field(None, examples=["order 7 is not at the expected version"])
    instance: str | None = Field(None, examples=["/orders/7/pay"])
    errors: list[FieldProblem] | None = Field(None, description="For invalid requests")


def problem_response(
    scope: Scope,
    status: int,
    *,
    title: str | None = None,
    detail: str | None = None,
    type: str = "about:blank",
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells a problem with the request in `scope`."""
    problem = Problem(
        type=type,
        title=title or _phrase(status),
        status=status,
        detail=detail,
        instance=quote(scope["path"], errors="replace"),
        errors=list(errors) or None,
    )
    # Not pydantic's JSON: a request may hold lone surrogates, which only escaping can repeat.
    body = json.dumps(problem.model_dump(exclude_none=True))
    return Response(body, status, headers=headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the problems it answers with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS.format(model="Problem")}}}
    return {status: {"description": _phrase(status), "content": content} for status in statuses}


def with_headers(status: int, **headers: str) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the headers of an answer, with `_` for `-`, and what they tell."""
    described = {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
        for name, text in headers.items()
    }
    return {status: {"headers": described}}


def document(app: FastAPI) -> None:
    """Put the schemas that `responses` refers to into the OpenAPI document of `app`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (Problem, FieldProblem):
                described = model.model_json_schema(ref_template=_SCHEMAS)
                described.pop("$defs", None)
                schemas[model.__name__] = described
            app.openapi_schema = schema
        return app.openapi_schema

    # FastAPI's documented way to extend the document is to replace the method.
    app.openapi = openapi  # type: ignore[method-assign]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _escaped(part: str) -> str:
    """`part` as a reference token of a JSON Pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")
