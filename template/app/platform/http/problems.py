"""The errors of the service, and how the HTTP API tells them: RFC 9457 problem details."""

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from app.platform.errors import (
    Conflict,
    DomainError,
    FieldProblem,
    ServiceError,
    Unprocessable,
    shortened,
)
from app.platform.http.methods import allowed_methods

MEDIA_TYPE = "application/problem+json"
# An answer stays below 64 KB, even if each of these characters takes twelve bytes as JSON.
_MAX_FIELDS = 16
_MAX_DETAIL = 800
_MAX_INSTANCE = 8_000
_SCHEMAS = "#/components/schemas/{model}"


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field("about:blank", examples=["urn:problem-type:version-conflict"])
    title: str = Field(examples=["The thing has changed meanwhile"])
    status: int = Field(examples=[412])
    detail: str | None = Field(None, examples=["it is not at the expected version"])
    instance: str | None = Field(None, examples=["/path/of/the/request"])
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
    instance = quote(scope["path"], errors="replace")
    problem = Problem(
        type=type,
        title=title or _phrase(status),
        status=status,
        detail=detail and shortened(detail, _MAX_DETAIL),
        instance=instance if len(instance) <= _MAX_INSTANCE else None,
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
    """Put the schemas that `responses` refers to into the OpenAPI document of `app`, and the problems
    that are common to all operations, or to all with a body."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            for operation in (o for path in schema["paths"].values() for o in path.values()):
                common = responses(408, 413)  # a body is limited also where none is expected
                if "requestBody" in operation:
                    common |= responses(400, 409, 415)
                operation["responses"] |= {str(s): told for s, told in common.items()}
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


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem, and document the format."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    document(app)


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return problem_response(
        request.scope,
        error.status,
        title=error.title,
        detail=str(error),
        type=type_of(error),
        errors=getattr(error, "fields", []),
        headers=error.headers,
    )


async def _domain_error(request: Request, error: Exception) -> Response:
    return problem_response(
        request.scope, 409, title=Conflict.title, detail=str(error), type=type_of(error)
    )


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    in_body = any(entry["loc"][0] == "body" for entry in error.errors())
    if in_body and isinstance(error.body, bytes):  # FastAPI parses what is said to be JSON
        return problem_response(
            request.scope, 415, detail="send JSON, and say so: Content-Type: application/json"
        )
    entries = error.errors()
    fields = [_field(entry) for entry in entries[:_MAX_FIELDS]]
    told = [f"{field.place}: {field.detail}" for field in fields[:3]]
    if left_out := len(entries) - len(fields):
        told.append(f"{left_out} more errors than are listed here")
    return problem_response(
        request.scope,
        422,
        title=Unprocessable.title,
        detail="; ".join(told),
        type="urn:problem-type:validation-failed",
        errors=fields,
    )


def _field(entry: Mapping[str, Any]) -> FieldProblem:
    if entry["type"] == "json_invalid":  # its place is a position in the text and no field
        location, position = entry["loc"]
        detail = f"not JSON at character {position + 1}: {entry['ctx']['error']}"
        return FieldProblem.of([location], detail)
    # What pydantic puts before our own words is not for callers.
    return FieldProblem.of(entry["loc"], entry["msg"].removeprefix("Value error, "))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the router names those of one route
        headers["Allow"] = ", ".join(allowed_methods(request.app.routes, request.scope))
    return problem_response(
        request.scope, error.status_code, detail=str(error.detail), headers=headers
    )


def type_of(error: Exception) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", type(error).__name__)
    return f"urn:problem-type:{'-'.join(words).lower()}"
