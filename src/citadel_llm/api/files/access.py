"""What the endpoints of files and vector stores share: whose they are, how lists are told, what is said in trouble."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.principal import Principal
from citadel_llm.integration.database.files import Page
from citadel_llm.integration.database.target import DatabaseUnavailable

if TYPE_CHECKING:
    from citadel_llm.api.files.build import FileService
    from citadel_llm.api.state import GatewayState

__all__ = ["After", "Before", "Limit", "Order", "listed", "no_files", "page_of", "reachable", "service_of"]

Limit = Annotated[int, Query(ge=1, le=10_000, description="How many at most")]
Order = Annotated[Literal["asc", "desc"], Query(description="The oldest, or the newest first")]
After = Annotated[str, Query(max_length=64, description="The id of the last one that was seen")]
Before = Annotated[str, Query(max_length=64, description="The id of the first one that was seen")]


def no_files(state: GatewayState) -> ApiError:
    """The 501 for who wants files where there are none, or none of its own."""
    why = (
        "this server is not set up for them"
        if state.files is None
        else "this key is one of a file, and belongs to no user whose they would be"
    )
    return ApiError(
        501,
        "files_not_kept",
        f"Files and vector stores are not kept here: {why}.",
        headers=[(b"x-should-retry", b"false")],
    )


def service_of(state: GatewayState, principal: Principal) -> tuple[FileService, str]:
    """What does the work, and the user's id. Raises ApiError 501."""
    if state.files is None or not principal.user_id:
        raise no_files(state)
    return state.files, principal.user_id


@contextlib.contextmanager
def reachable(state: GatewayState) -> Iterator[None]:
    """What asks the database, with a 503 where it is away."""
    try:
        yield
    except DatabaseUnavailable:
        raise ApiError(
            503,
            "database_unavailable",
            "Files and vector stores can't be reached at the moment. Try again later.",
            retry_after_s=state.config.limits.retry_after_s,
        ) from None


def page_of(limit: int, order: str, after: str, before: str, *, most: int = 100) -> Page:
    """The page; one more than is shown, to see whether there is one. Raises ApiError 400."""
    if limit > most:
        raise ApiError(400, "invalid_request", f"limit: expected at most {most}", param="limit")
    if "\0" in after + before:
        raise ApiError(400, "invalid_request", "after: expected an id", param="after")
    return Page(limit + 1, order == "asc", after, before)


def listed(entries: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list in OpenAI's shape."""
    shown = entries[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(entries) > limit,
    }
