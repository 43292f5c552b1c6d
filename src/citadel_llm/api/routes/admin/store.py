"""What the admin API's endpoints share: the database or a 503, one change at a time, pages, and what nobody may."""

from __future__ import annotations

import base64
import binascii
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import Query
from pydantic import BaseModel, ConfigDict, StringConstraints

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.identity.rights import Rights, rights_of, within
from citadel_llm.api.routes.schemas import refused
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import accounts

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = [
    "Body",
    "Cursor",
    "Limit",
    "Store",
    "Text",
    "as_uuid",
    "check_within",
    "not_found",
    "page",
    "read_cursor",
    "responses",
    "rights_by_roles",
]

# Of what people write: one line, nothing that is no character.
Text = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Limit = Annotated[int, Query(ge=1, le=200, description="How many at most")]
Cursor = Annotated[str | None, Query(max_length=512, description="The `next` of the page before")]

_TEXTS = {
    400: "The request is not valid; `param` names the field",
    401: "No key or password, or one that is not known",
    403: "The caller may not do that",
    404: "There is none",
    409: "It is not possible as things are",
    413: "The body is too large",
    429: "Too many passwords were wrong; see Retry-After",
    503: "The database is away; see Retry-After",
}


class Body(BaseModel):
    """A request's body: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", strict=True)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an endpoint, for its documentation."""
    return {status: refused(_TEXTS[status]) for status in (400, 401, 403, *statuses, 413, 429, 503)}


class Store:
    """The way to the database."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A transaction. Raises ApiError 503 where the database is away."""
        from citadel_llm.integration.database.pool import DatabaseUnavailable  # noqa: PLC0415 — only where wanted

        if self._state.database is None:
            raise self._away("it is not configured")
        try:
            async with self._state.database.connection() as connection:
                yield connection
        except DatabaseUnavailable:
            raise self._away("it is away") from None

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[Connection]:
        """A transaction beside which nobody else changes anything; afterwards every instance knows."""
        async with self.reading() as connection:
            await accounts.lock(connection)
            yield connection
        await self._state.identity.changed()

    def _away(self, why: str) -> ApiError:
        return ApiError(
            503,
            "database_unavailable",
            f"This needs the database, and {why}.",
            retry_after_s=self._state.config.limits.retry_after_s,
        )


def page(
    rows: Sequence[Mapping[str, Any]], limit: int, key: Iterable[str]
) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """Of `limit + 1` rows those that are shown, and the cursor of what follows."""
    if len(rows) <= limit:
        return rows, None
    shown = rows[:limit]
    last = [shown[-1][name] for name in key]
    return shown, base64.urlsafe_b64encode(orjson.dumps(last)).decode().rstrip("=")


def read_cursor(cursor: str | None, *types: type) -> tuple[Any, ...] | None:
    """What `page` put into it. Raises ApiError 400."""
    if cursor is None:
        return None
    with contextlib.suppress(binascii.Error, ValueError):
        found = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if (
            isinstance(found, list)
            and [type(entry) for entry in found] == list(types)
            and not any(isinstance(entry, str) and "\0" in entry for entry in found)
        ):
            return tuple(found)
    raise ApiError(400, "invalid_request", "cursor: expected the `next` of a page of this list.", param="cursor")


def as_uuid(text: str) -> str | None:
    """`text` as an id, None where it is none."""
    if len(text) == 36:
        with contextlib.suppress(ValueError):
            return str(uuid.UUID(text))
    return None


def not_found(kind: str, name: str) -> ApiError:
    """The 404."""
    return ApiError(404, f"{kind}_not_found", f"There is no {kind} `{name[:128]}`.", param=kind)


async def rights_by_roles(connection: Connection, roles: Sequence[str]) -> Rights:
    """What these roles permit now."""
    return rights_of(roles, await accounts.grants_of(connection, roles))


def check_within(caller: Principal, rights: Rights, what: str) -> None:
    """Raises ApiError 403 where the caller would give, or take hold of, more than it holds itself."""
    if not within(rights, caller):
        raise ApiError(403, "beyond_own_rights", f"{what} may do what you may not, so that you may not do this.")
