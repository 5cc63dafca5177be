"""Versions over HTTP: ETag, If-Match, and waiting for a version that was written elsewhere."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request

from app.platform.errors import NotFound, PreconditionRequired, Unavailable

WAIT_SECONDS = 2.0
POLL_SECONDS = 0.05

_STRONG_ETAG = re.compile(r'"([1-9][0-9]{0,18})"')

T = TypeVar("T")


def etag(version: int) -> str:
    """Return `version` as a strong entity tag (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def parse_if_match(if_match: str | None) -> frozenset[int] | None:
    """Return the versions that If-Match allows; None for any. A foreign ETag matches nothing.

    Raises PreconditionRequired if the header is missing.
    """
    if if_match is None:
        raise PreconditionRequired("send the ETag of what you change in If-Match")
    if if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(match[1]) for tag in tags if (match := _STRONG_ETAG.fullmatch(tag)))


async def get_expected_versions(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match", description="ETag of the version that is to be changed; `*` for any"
        ),
    ] = None,
) -> frozenset[int] | None:
    """Join several If-Match fields to one list (RFC 9110, 5.3); FastAPI passes only the first."""
    return parse_if_match(if_match and ", ".join(request.headers.getlist("If-Match")))


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]


class VersionNotReached(Unavailable):
    title = "The version is not there yet"
    problem_type = "not-yet-there"


async def wait_for_version(
    read: Callable[[], Awaitable[T | None]],
    version_of: Callable[[T], int],
    min_version: int | None,
    what: str,
    id: object,
    seconds: float | None = None,
) -> T:
    """Return what `read` finds, once it has reached `min_version`; without one, at once.

    Raises NotFound, and VersionNotReached after `seconds` (2 by default); their messages name
    `what` and `id`.
    """
    deadline = asyncio.get_running_loop().time() + (WAIT_SECONDS if seconds is None else seconds)
    while True:
        found = await read()
        if min_version is None:
            if found is None:
                raise NotFound(what, id)
            return found
        if found is not None and version_of(found) >= min_version:
            return found
        # The caller has seen this version elsewhere, so it will arrive.
        if asyncio.get_running_loop().time() >= deadline:
            raise VersionNotReached(f"{what} {id} has not reached version {min_version} here")
        await asyncio.sleep(POLL_SECONDS)
