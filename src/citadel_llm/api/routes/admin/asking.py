"""What the endpoints that read the database have in common."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from citadel_llm.api.errors import ApiError
from citadel_llm.api.routes.schemas import refused
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.pool import DatabaseUnavailable

__all__ = ["REFUSALS", "asked"]

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: refused(),
    401: refused(),
    403: refused("The key lacks the permission"),
    404: refused("There is no page of that cursor, or nothing of that kind"),
    501: refused("There is no database here"),
    503: refused("The database is away; see Retry-After"),
}


@contextlib.asynccontextmanager
async def asked(state: GatewayState) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection for one question. Raises ApiError: 503 while the database is away, 501 where there is none."""
    if state.database is None:
        raise ApiError(501, "no_database", "This gateway has no database, which would know.")
    try:
        async with state.database.connection() as connection:
            yield connection
    except DatabaseUnavailable as failure:
        raise ApiError(
            503,
            "database_unavailable",
            "The database does not answer at the moment. Try again later.",
            retry_after_s=state.config.limits.retry_after_s,
        ) from failure
