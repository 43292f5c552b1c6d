"""`/v1/conversations`: OpenAI's conversations API, with a list of one's own and an export beside it.

Each conversation is its user's own: by every other one it is not found.
"""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.schemas_sessions import (
    ConversationDeleted,
    ConversationExport,
    ConversationObject,
    ConversationPage,
    errors,
    json_body,
)
from citadel_llm.api.sessions.items import item_of, new_id, page_of
from citadel_llm.api.sessions.owner import checked_metadata, owner_of, reachable, read
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.sessions import Conversation, Item, Sessions

__all__ = ["AT_ONCE", "HELLO", "ITEMS", "SECURED", "After", "Limit", "Own", "router", "shown"]

AT_ONCE = 20  # items that are added by one request, as OpenAI has it
_CONVERSATION = re.compile(r"conv_[0-9a-f]{8,56}")
SECURED: dict[str, Any] = {"security": [{"bearer": []}]}
_METADATA = {
    "type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512},
    "propertyNames": {"minLength": 1, "maxLength": 64},
}  # fmt: skip
ITEMS = {"type": "array", "maxItems": AT_ONCE, "items": {"type": "object"}}
HELLO = {"type": "message", "role": "user", "content": "Hello"}

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most")]
After = Annotated[str, Query(max_length=128, description="The id of the last one that was seen")]


class _New(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, str] | None = None
    items: list[msgspec.Raw] | None = None


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, str] | None


def shown(conversation: Conversation) -> dict[str, Any]:
    """As callers see it."""
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "expires_at": conversation.expires_at,
        "metadata": conversation.metadata,
    }


class Own:
    """What the endpoints share: whose conversations they are about, and what they may hold."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self.bounds = state.config.sessions
        self.body_bytes = state.config.limits.body_bytes

    def sessions(self, principal: Principal) -> tuple[Sessions, str]:
        """The conversations and the caller's id. Raises ApiError 501."""
        database, user_id = owner_of(self._state, principal)
        return Sessions(database, ttl_s=self.bounds.ttl_s), user_id

    def known(self, id: str) -> str:
        """The same, where it may be an id. Raises ApiError 404."""
        if not _CONVERSATION.fullmatch(id):
            raise self.missing(id)
        return id

    async def find(self, principal: Principal, id: str) -> tuple[Sessions, Conversation]:
        """The conversation of that id. Raises ApiError."""
        sessions, user_id = self.sessions(principal)
        with reachable(self._state):
            found = await sessions.get(user_id, self.known(id))
        if found is None:
            raise self.missing(id)
        return sessions, found

    def missing(self, id: str) -> ApiError:
        """The 404."""
        return ApiError(
            404, "conversation_not_found", f"There is no conversation `{id[:64]}` of yours.", param="conversation_id"
        )

    def items(self, raw: list[msgspec.Raw]) -> list[Item]:
        """What is to be added. Raises ApiError 400."""
        if len(raw) > AT_ONCE:
            raise ApiError(400, "too_many_items", f"items: expected at most {AT_ONCE} at once", param="items")
        most = self.bounds.max_item_bytes
        found = [item_of(one, max_bytes=most, param=f"items[{n}]") for n, one in enumerate(raw)]
        if len(found) > self.bounds.max_items or sum(item.bytes for item in found) > self.bounds.max_bytes:
            raise self.too_long()
        return found

    def too_long(self) -> ApiError:
        """The 400 for a conversation of more than it may have."""
        return ApiError(
            400,
            "conversation_too_long",
            f"A conversation has at most {self.bounds.max_items} items and {self.bounds.max_bytes} bytes here. "
            "Begin a new one.",
            param="items",
        )


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/conversations", tags=["conversations"])
    Caller = Annotated[Principal, Depends(Guard(state)("conversations"))]
    own = Own(state)

    @routes.post(
        "",
        summary="Begin a conversation",
        response_model=ConversationObject,
        responses=errors(413),
        openapi_extra=json_body({"metadata": _METADATA, "items": ITEMS}, {"items": [HELLO]}, required=[]),
    )
    async def create_conversation(request: Request, caller: Caller) -> Response:
        sessions, user_id = own.sessions(caller)
        given = await read(request, _New, own.body_bytes)
        items = own.items(given.items or [])
        with reachable(state):
            new = await sessions.create(user_id, new_id("conv"), checked_metadata(given.metadata or {}), items)
        return JSONResponse(shown(new))

    @routes.get(
        "",
        summary="List one's own conversations, the last used first",
        response_model=ConversationPage,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def list_conversations(caller: Caller, after: After = "", limit: Limit = 20) -> Response:
        sessions, user_id = own.sessions(caller)
        with reachable(state):
            if after and await sessions.get(user_id, own.known(after)) is None:
                raise own.missing(after)
            found = await sessions.page(user_id, after, limit + 1)
        return page_of(((one.id, orjson.dumps(shown(one)).decode()) for one in found), limit)

    @routes.get(
        "/{conversation_id}",
        summary="Show a conversation",
        response_model=ConversationObject,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def get_conversation(conversation_id: str, caller: Caller) -> Response:
        return JSONResponse(shown((await own.find(caller, conversation_id))[1]))

    @routes.post(
        "/{conversation_id}",
        summary="Give a conversation other metadata",
        response_model=ConversationObject,
        responses=errors(404, 413),
        openapi_extra=json_body({"metadata": _METADATA}, {"metadata": {"topic": "a"}}, required=["metadata"]),
    )
    async def update_conversation(conversation_id: str, request: Request, caller: Caller) -> Response:
        sessions, user_id = own.sessions(caller)
        given = await read(request, _Change, own.body_bytes)
        with reachable(state):
            found = await sessions.update(user_id, own.known(conversation_id), checked_metadata(given.metadata or {}))
        if found is None:
            raise own.missing(conversation_id)
        return JSONResponse(shown(found))

    @routes.delete(
        "/{conversation_id}",
        summary="Delete a conversation with its items",
        response_model=ConversationDeleted,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def delete_conversation(conversation_id: str, caller: Caller) -> Response:
        sessions, user_id = own.sessions(caller)
        with reachable(state):
            if not await sessions.delete(user_id, own.known(conversation_id)):
                raise own.missing(conversation_id)
        return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})

    @routes.get(
        "/{conversation_id}/export",
        summary="Export a conversation with all its items",
        response_model=ConversationExport,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def export_conversation(
        conversation_id: str, caller: Caller, format: Literal["json", "jsonl"] = "json"
    ) -> Response:
        sessions, found = await own.find(caller, conversation_id)
        head = orjson.dumps(shown(found))

        async def lines() -> AsyncIterator[bytes]:
            yield head + b"\n"
            async for page in sessions.pages(conversation_id):
                yield "".join([item.content + "\n" for item in page]).encode()

        async def whole() -> AsyncIterator[bytes]:
            yield head[:-1] + b',"items":['
            comma = ""
            async for page in sessions.pages(conversation_id):
                yield (comma + ",".join([item.content for item in page])).encode()
                comma = ","
            yield b"]}"

        if format == "json":
            return StreamingResponse(whole(), media_type="application/json")
        return StreamingResponse(lines(), media_type="application/jsonl")

    return routes
