"""`/v1/conversations/ID/items`: what was said, in its order."""

import re
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.conversations import AT_ONCE, HELLO, ITEMS, SECURED, After, Limit, Own, shown
from citadel_llm.api.routes.schemas_sessions import ConversationObject, ItemObject, ItemPage, errors, json_body
from citadel_llm.api.sessions.items import page_of
from citadel_llm.api.sessions.owner import reachable, read
from citadel_llm.api.state import GatewayState

__all__ = ["Include", "Order", "router"]

_ITEM = re.compile(r"[a-z]{1,8}_[A-Za-z0-9_-]{1,64}")

Order = Literal["asc", "desc"]
Include = Annotated[list[str] | None, Query(alias="include[]", description="Taken and not looked at")]


class _Items(msgspec.Struct, forbid_unknown_fields=True):
    items: list[msgspec.Raw]


def _missing_item(id: str) -> ApiError:
    return ApiError(404, "item_not_found", f"There is no item `{id[:64]}` in this conversation.", param="item_id")


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/conversations", tags=["conversations"])
    Caller = Annotated[Principal, Depends(Guard(state)("conversations"))]
    own = Own(state)

    @routes.post(
        "/{conversation_id}/items",
        summary="Add items at a conversation's end",
        response_model=ItemPage,
        responses=errors(404, 413),
        openapi_extra=json_body({"items": ITEMS}, {"items": [HELLO]}, required=["items"]),
    )
    async def create_items(conversation_id: str, request: Request, caller: Caller, include: Include = None) -> Response:
        sessions, user_id = own.sessions(caller)
        items = own.items((await read(request, _Items, own.body_bytes)).items)
        with reachable(state):
            added = await sessions.add(
                user_id, own.known(conversation_id), items, own.bounds.max_items, own.bounds.max_bytes
            )
        if added is None:
            raise own.missing(conversation_id)
        if not added:
            raise own.too_long()
        return page_of(((item.id, item.content) for item in items), AT_ONCE)

    @routes.get(
        "/{conversation_id}/items",
        summary="List a conversation's items",
        response_model=ItemPage,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def list_items(
        conversation_id: str,
        caller: Caller,
        after: After = "",
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        sessions, user_id = own.sessions(caller)
        if after and not _ITEM.fullmatch(after):
            raise _missing_item(after)
        with reachable(state):
            found = await sessions.items(
                user_id, own.known(conversation_id), after, limit + 1, descending=order == "desc"
            )
        if found is None:
            raise _missing_item(after) if after else own.missing(conversation_id)
        return page_of(((item.id, item.content) for item in found), limit)

    @routes.get(
        "/{conversation_id}/items/{item_id}",
        summary="Show an item",
        response_model=ItemObject,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def get_item(conversation_id: str, item_id: str, caller: Caller, include: Include = None) -> Response:
        sessions, user_id = own.sessions(caller)
        if not _ITEM.fullmatch(item_id):
            raise _missing_item(item_id)
        with reachable(state):
            found = await sessions.item(user_id, own.known(conversation_id), item_id)
        if found is None:
            raise _missing_item(item_id)
        return Response(found, media_type="application/json")

    @routes.delete(
        "/{conversation_id}/items/{item_id}",
        summary="Delete an item",
        response_model=ConversationObject,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def delete_item(conversation_id: str, item_id: str, caller: Caller) -> Response:
        sessions, user_id = own.sessions(caller)
        if not _ITEM.fullmatch(item_id):
            raise _missing_item(item_id)
        with reachable(state):
            found = await sessions.delete_item(user_id, own.known(conversation_id), item_id)
        if found is None:
            raise _missing_item(item_id)
        return JSONResponse(shown(found))

    return routes
