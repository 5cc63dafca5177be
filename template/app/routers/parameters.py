"""What routes take from paths and headers."""

import re
from typing import Annotated

from fastapi import Depends, Header, Path

from app.errors import PreconditionRequired

# An id outside of the column's range is refused; all others are looked for.
PathId = Annotated[int, Path(ge=-(2**63), le=2**63 - 1)]

_STRONG_ETAG = re.compile(r'"([1-9][0-9]{0,9})"')


def etag(version: int) -> str:
    """The version as a strong entity tag (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def get_expected_versions(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match", description="ETag of the version that is to be changed; `*` for any"
        ),
    ] = None,
) -> frozenset[int] | None:
    """The versions that If-Match allows, None for any. What is no ETag of ours matches nothing."""
    if if_match is None:
        raise PreconditionRequired("send the order's ETag in If-Match")
    if if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(match[1]) for tag in tags if (match := _STRONG_ETAG.fullmatch(tag)))


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes the request safe to repeat: the same key gets the same answer",
        examples=["9f1c0a52-8a4e-4c59-9f0c-3d5a5f4f2c11"],
    ),
]
