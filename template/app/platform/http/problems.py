"""Problem details (RFC 9457), the format of every error of the HTTP API."""

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
    truncate,
)
from app.platform.http.methods import allowed_methods

MEDIA_TYPE = "application/problem+json"
# A response stays below 64 KB, even if each character takes twelve bytes as JSON.
_MAX_FIELDS = 16
_MAX_DETAIL = 800
_MAX_INSTANCE = 8_000
_SCHEMAS = "#/components/schemas/{model}"


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field("about:blank", examples=["urn:problem-type:version-conflict"])
    title: str = Field(examples=["The resource has changed meanwhile"])
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
    """Build the response that reports a problem with the request in `scope`."""
    instance = quote(scope["path"], errors="replace")
    problem = Problem(
        type=type,
        title=title or _reason_phrase(status),
        status=status,
        detail=detail and truncate(detail, _MAX_DETAIL),
        instance=instance if len(instance) <= _MAX_INSTANCE else None,
        errors=list(errors) or None,
    )
    # Not pydantic's JSON: a request may contain lone surrogates, which only escapes can represent.
    body = json.dumps(problem.model_dump(exclude_none=True))
    return Response(body, status, headers=headers, media_type=MEDIA_TYPE)


def error_response(scope: Scope, error: ServiceError) -> Response:
    """Build the response that reports `error`."""
    return problem_response(
        scope,
        error.status,
        title=error.title,
        detail=str(error),
        type=problem_type_of(error),
        errors=getattr(error, "fields", []),
        headers=error.headers,
    )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document, for a route's `responses`, problems by their status."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS.format(model="Problem")}}}
    return {
        status: {"description": _reason_phrase(status), "content": content} for status in statuses
    }


def with_headers(status: int, **headers: str) -> dict[int | str, dict[str, Any]]:
    """Document, for a route's `responses`, headers by name, with `_` for `-`."""
    described = {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
        for name, text in headers.items()
    }
    return {status: {"headers": described}}


def extend_document(app: FastAPI) -> None:
    """Add the schemas of problems, and those common to all operations, to the OpenAPI document."""

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
                common = responses(408, 413)  # the limits apply even where no body is expected
                if "requestBody" in operation:
                    common |= responses(400, 409, 415)
                operation["responses"] |= {str(status): value for status, value in common.items()}
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (Problem, FieldProblem):
                described = model.model_json_schema(ref_template=_SCHEMAS)
                described.pop("$defs", None)
                schemas[model.__name__] = described
            app.openapi_schema = schema
        return app.openapi_schema

    # Replacing the method is FastAPI's documented way to extend the document.
    app.openapi = openapi  # type: ignore[method-assign]


def _reason_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def install(app: FastAPI) -> None:
    """Render every error of `app` as a problem, and document the format."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    extend_document(app)


async def _service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    return error_response(request.scope, error)


async def _domain_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, DomainError):
        raise error
    return problem_response(
        request.scope, 409, title=Conflict.title, detail=str(error), type=problem_type_of(error)
    )


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    in_body = any(entry["loc"][0] == "body" for entry in error.errors())
    if in_body and isinstance(error.body, bytes):  # FastAPI parses only what is declared as JSON
        return problem_response(
            request.scope, 415, detail="send JSON with the header Content-Type: application/json"
        )
    entries = error.errors()
    fields = [_field(entry) for entry in entries[:_MAX_FIELDS]]
    details = [str(field) for field in fields[:3]]
    if omitted := len(entries) - len(fields):
        details.append(f"{omitted} more errors than are listed here")
    return problem_response(
        request.scope,
        422,
        title=Unprocessable.title,
        detail="; ".join(details),
        type="urn:problem-type:validation-failed",
        errors=fields,
    )


def _field(entry: Mapping[str, Any]) -> FieldProblem:
    if entry["type"] == "json_invalid":  # its location is a position in the text, not a field
        location, position = entry["loc"]
        detail = f"not JSON at character {position + 1}: {entry['ctx']['error']}"
        return FieldProblem.of([location], detail)
    # pydantic's prefix of our own messages is not for callers.
    return FieldProblem.of(entry["loc"], entry["msg"].removeprefix("Value error, "))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the router lists those of one route
        headers["Allow"] = ", ".join(allowed_methods(request.app.routes, request.scope))
    return problem_response(
        request.scope, error.status_code, detail=str(error.detail), headers=headers
    )


def problem_type_of(error: ServiceError | DomainError) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", type(error).__name__)
    return f"urn:problem-type:{error.problem_type or '-'.join(words).lower()}"
