"""`/v1/responses/ID…`: the responses that were kept, each its user's own.

Creating one is on the hot path (`kept.py`). Where nothing is kept, there is none to be found.
"""

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.conversation_items import Include, Order
from citadel_llm.api.routes.conversations import SECURED, After, Limit
from citadel_llm.api.routes.schemas import refused
from citadel_llm.api.routes.schemas_inference import ResponseObject
from citadel_llm.api.routes.schemas_sessions import ItemPage, ResponseDeleted, errors
from citadel_llm.api.sessions.items import array, members_of, page_of
from citadel_llm.api.sessions.owner import reachable
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.responses import Kept, Responses
from citadel_llm.integration.database.sessions import Sessions

__all__ = ["router"]


def _missing(id: str) -> ApiError:
    return ApiError(
        404,
        "response_not_found",
        f"There is no response `{id[:128]}` of yours: it was not kept, was deleted, or has expired.",
        param="response_id",
    )


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/responses/{response_id}", tags=["inference"])
    Caller = Annotated[Principal, Depends(Guard(state)("conversations"))]
    ttl_s = state.config.sessions.ttl_s

    def mine(principal: Principal, id: str) -> Responses:
        if state.database is None or not principal.user_id or not id.isascii() or not id.isprintable():
            raise _missing(id)
        return Responses(state.database, Sessions(state.database, ttl_s=ttl_s), ttl_s=ttl_s)

    async def find(principal: Principal, id: str) -> Kept:
        responses = mine(principal, id)
        with reachable(state):
            found = await responses.get(principal.user_id, id)
        if found is None:
            raise _missing(id)
        return found

    @routes.get(
        "",
        summary="Show a kept response",
        response_model=ResponseObject,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def get_response(response_id: str, caller: Caller, request: Request, include: Include = None) -> Response:
        if request.query_params.get("stream") in ("true", "1"):
            raise ApiError(400, "invalid_request", "A kept response comes whole, not as a stream.", param="stream")
        found = await find(caller, response_id)
        return Response(found.body[:-1] + ',"output":' + found.output + "}", media_type="application/json")

    @routes.delete(
        "",
        summary="Delete a kept response",
        response_model=ResponseDeleted,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def delete_response(response_id: str, caller: Caller) -> Response:
        responses = mine(caller, response_id)
        with reachable(state):
            if not await responses.delete(caller.user_id, response_id):
                raise _missing(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @routes.get(
        "/input_items",
        summary="List what a kept response's request added",
        response_model=ItemPage,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def list_input_items(
        response_id: str,
        caller: Caller,
        after: After = "",
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> Response:
        found = await find(caller, response_id)
        items = [
            (str(orjson.loads(bytes(members_of(raw)["id"]))), bytes(raw).decode())
            for raw in array(found.input.encode())
        ]
        if order == "desc":
            items.reverse()
        if after:
            ids = [id for id, _ in items]
            if after not in ids:
                raise ApiError(404, "item_not_found", f"There is no item `{after[:64]}` here.", param="after")
            items = items[ids.index(after) + 1 :]
        return page_of(items, limit)

    @routes.post(
        "/cancel",
        summary="Cancel a response in the background (none runs there: close the connection instead)",
        status_code=404,
        response_class=JSONResponse,
        responses={401: refused(), 403: refused(), 404: refused()},
        openapi_extra=SECURED,
    )
    async def cancel_response(response_id: str, caller: Caller) -> Response:
        raise ApiError(
            404,
            "response_not_found",
            f"No response `{response_id[:128]}` runs in the background: none does here. "
            "Close the connection of a request to cancel it.",
            param="response_id",
        )

    return routes
