"""All that is kept of a user: `/v1/me/data` for oneself, `/admin/v1/users/ID/data` for an admin."""

import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.conversations import SECURED
from citadel_llm.api.routes.schemas_sessions import DataDeleted, errors
from citadel_llm.api.sessions.owner import nothing_kept, owner_of, reachable
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import user_data

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["router"]

_LINES = {
    "description": "JSON lines: conversations, their items, kept responses, ratings, files, vector stores",
    "content": {"application/jsonl": {"schema": {"type": "string"}}},
}


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(tags=["data"])
    guard = Guard(state)
    Owner = Annotated[Principal, Depends(guard("conversations"))]
    Admin = Annotated[Principal, Depends(guard("users.write"))]

    async def exported(database: "Database", user_id: str) -> Response:
        pages = user_data.export(database, user_id)
        with reachable(state):  # the first of it before the answer begins: a database that is away is a 503
            first = await anext(pages, b"")

        async def lines() -> AsyncIterator[bytes]:
            yield first
            async for page in pages:
                yield page

        return StreamingResponse(lines(), media_type="application/jsonl")

    async def deleted(request: Request, database: "Database", user_id: str) -> Response:
        with reachable(state):
            counts = await user_data.delete(database, user_id)
        request.scope["citadel.audit"] = {"user_id": user_id, **counts}
        return JSONResponse({"object": "user.data.deleted", **counts})

    async def user(id: str) -> tuple["Database", str]:
        if state.database is None:
            raise nothing_kept(state)
        try:
            user_id = str(uuid.UUID(id)) if len(id) == 36 else ""
        except ValueError:
            user_id = ""
        with reachable(state):
            if not user_id or not await user_data.exists(state.database, user_id):
                raise ApiError(404, "user_not_found", f"There is no user `{id[:64]}`.", param="user_id")
        return state.database, user_id

    @routes.get(
        "/v1/me/data",
        summary="Export all that is kept of oneself",
        response_class=StreamingResponse,
        responses={200: _LINES, **errors()},
        openapi_extra=SECURED,
    )
    async def export_own_data(caller: Owner) -> Response:
        return await exported(*owner_of(state, caller))

    @routes.delete(
        "/v1/me/data",
        summary="Delete all that is kept of oneself",
        response_model=DataDeleted,
        responses=errors(),
        openapi_extra=SECURED,
    )
    async def delete_own_data(request: Request, caller: Owner) -> Response:
        return await deleted(request, *owner_of(state, caller))

    @routes.get(
        "/admin/v1/users/{user_id}/data",
        summary="Export all that is kept of a user",
        response_class=StreamingResponse,
        responses={200: _LINES, **errors(404)},
        openapi_extra=SECURED,
    )
    async def export_user_data(user_id: str, request: Request, caller: Admin) -> Response:
        request.scope["citadel.audit"] = {"user_id": user_id[:64]}
        return await exported(*await user(user_id))

    @routes.delete(
        "/admin/v1/users/{user_id}/data",
        summary="Delete all that is kept of a user",
        response_model=DataDeleted,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def delete_user_data(user_id: str, request: Request, caller: Admin) -> Response:
        return await deleted(request, *await user(user_id))

    return routes
