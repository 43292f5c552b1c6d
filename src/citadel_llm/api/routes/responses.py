"""`/v1/responses/ID…`: responses are not kept here, so that there is none to be found by its id.

Creating one is on the hot path (`kinds.py`). Keeping them would mean keeping what callers and models wrote, on
whichever engine happened to answer.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from citadel_llm.api.errors import ApiError
from citadel_llm.api.middleware.auth import authenticate
from citadel_llm.api.routes.schemas import ErrorBody
from citadel_llm.api.state import GatewayState

__all__ = ["router"]

_REFUSALS: dict[int | str, dict[str, object]] = {
    401: {"model": ErrorBody},
    404: {"model": ErrorBody, "description": "There is never one: responses are not kept on this server"},
}


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/responses/{response_id}", tags=["inference"])

    def refuse(response_id: str, request: Request) -> JSONResponse:
        key = request.headers.get("authorization")
        authenticate(state.keys, key.encode("latin-1") if key is not None else None)
        raise ApiError(
            404,
            "response_not_found",
            f"There is no response `{response_id[:128]}`: responses are not kept on this server. "
            "Send the whole conversation as `input` of POST /v1/responses instead.",
            param="response_id",
        )

    for method, path, summary in (
        ("GET", "", "Show a kept response (none is kept)"),
        ("DELETE", "", "Delete a kept response (none is kept)"),
        ("GET", "/input_items", "List a kept response's input (none is kept)"),
        ("POST", "/cancel", "Cancel a response in the background (none runs there: close the connection instead)"),
    ):
        routes.add_api_route(
            path,
            refuse,
            methods=[method],
            summary=summary,
            status_code=404,
            response_class=JSONResponse,
            responses=_REFUSALS,
            openapi_extra={"security": [{"bearer": []}]},
            operation_id=f"{method.lower()}Response{path.strip('/').title().replace('_', '')}",
        )
    return routes
