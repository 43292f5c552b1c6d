"""Whose things are kept, what is said where nothing can be, and bodies of a bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from fastapi import Request

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.principal import Principal
from citadel_llm.integration.database.target import DatabaseUnavailable

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState
    from citadel_llm.integration.database.pool import Database

__all__ = ["checked_metadata", "nothing_kept", "owner_of", "reachable", "read", "unavailable"]

_METADATA = (16, 64, 512)  # pairs, a key's characters, a value's


def nothing_kept(state: GatewayState) -> ApiError:
    """The 501 for who wants something kept, or found again, where nothing is kept for it."""
    why = (
        "this server has no database"
        if state.database is None
        else "this key is one of a file, and belongs to no user whose it would be"
    )
    return ApiError(
        501,
        "not_kept",
        f"Responses and conversations are not kept here: {why}. Send the whole conversation as `input` of "
        "POST /v1/responses instead, with `store` false.",
        headers=[(b"x-should-retry", b"false")],  # OpenAI's clients would try any other 5xx again
    )


def unavailable(state: GatewayState) -> ApiError:
    """The 503 while the database is away."""
    return ApiError(
        503,
        "database_unavailable",
        "What is kept of responses and conversations can't be reached at the moment. Try again later.",
        retry_after_s=state.config.limits.retry_after_s,
    )


def owner_of(state: GatewayState, principal: Principal) -> tuple[Database, str]:
    """Where the caller's things are, and by which user's id. Raises ApiError 501."""
    if state.database is None or not principal.user_id:
        raise nothing_kept(state)
    return state.database, principal.user_id


@contextlib.contextmanager
def reachable(state: GatewayState) -> Iterator[None]:
    """What asks the database, with a 503 where it is away."""
    try:
        yield
    except DatabaseUnavailable:
        raise unavailable(state) from None


async def read[Shape](request: Request, shape: type[Shape], limit: int) -> Shape:
    """The request's body, none for an empty object. Raises ApiError 400 and 413."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise ApiError(413, "request_too_large", f"The body is larger than the {limit} bytes that are taken here.")
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=shape)
    except msgspec.ValidationError as failure:
        _, _, path = str(failure).rpartition("`$.")
        raise ApiError(
            400, "invalid_request", f"The body is not a valid request: {failure}", param=path.rstrip("`") or None
        ) from None
    except (ValueError, RecursionError) as failure:
        raise ApiError(400, "invalid_json", f"The body is not valid JSON: {failure}") from None


def checked_metadata(given: dict[str, str]) -> dict[str, str]:
    """OpenAI's bounds: 16 pairs, keys of 64 characters, values of 512. Raises ApiError 400."""
    pairs, key_length, value_length = _METADATA
    if len(given) > pairs:
        raise ApiError(400, "invalid_request", f"metadata: expected at most {pairs} pairs", param="metadata")
    for key, value in given.items():
        if not key or len(key) > key_length or len(value) > value_length:
            raise ApiError(
                400,
                "invalid_request",
                f"metadata: expected keys of 1 to {key_length} characters, and values of at most {value_length}",
                param="metadata",
            )
        if "\0" in key + value:
            raise ApiError(400, "invalid_request", "metadata: expected no NUL characters", param="metadata")
    return given
