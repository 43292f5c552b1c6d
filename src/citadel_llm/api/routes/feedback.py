"""`/v1/feedback`: what a caller thinks of an answer, by the answer's `x-request-id`. One vote a caller and request."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from msgspec import Meta

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.middleware.correlation import sane_request_id
from citadel_llm.api.routes.conversations import SECURED, After, Limit
from citadel_llm.api.routes.schemas_sessions import FeedbackObject, FeedbackPage, errors, json_body
from citadel_llm.api.sessions.owner import owner_of, reachable, read
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import feedback
from citadel_llm.integration.database.feedback import Opinion

__all__ = ["router"]

_BODY_BYTES = 1 << 16
_COMMENT = 4096  # characters
_RATINGS = {"up": 1, "down": -1}
_THUMBS = {rating: thumb for thumb, rating in _RATINGS.items()}
_PROPERTIES = {
    "request_id": {"type": "string", "minLength": 1, "maxLength": 128, "description": "The answer's `x-request-id`"},
    "thumb": {"enum": ["up", "down", None]},
    "stars": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
    "labels": {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1, "maxLength": 64}},
    "comment": {"type": "string", "maxLength": _COMMENT},
}

type _Label = Annotated[str, Meta(min_length=1, max_length=64)]


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    request_id: Annotated[str, Meta(min_length=1, max_length=128)]
    thumb: Literal["up", "down"] | None = None
    stars: Annotated[int, Meta(ge=1, le=5)] | None = None
    labels: Annotated[list[_Label], Meta(max_length=16)] = []
    comment: Annotated[str, Meta(max_length=_COMMENT)] = ""


def _shown(opinion: Opinion) -> dict[str, Any]:
    return {
        "object": "feedback",
        "request_id": opinion.request_id,
        "thumb": None if opinion.rating is None else _THUMBS.get(opinion.rating),
        "stars": opinion.stars,
        "labels": opinion.labels,
        "comment": opinion.comment,
        "model": opinion.model,
        "created_at": opinion.created_at,
    }


def _sane(request_id: str) -> str:
    sane = sane_request_id(request_id.encode())
    if sane is None:
        raise ApiError(
            400, "invalid_request", "request_id: expected what an answer's `x-request-id` says.", param="request_id"
        )
    return sane


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/feedback", tags=["feedback"])
    metrics = state.metrics.business
    Caller = Annotated[Principal, Depends(Guard(state)("feedback"))]

    @routes.post(
        "",
        summary="Rate an answer, by a thumb, by stars or by both",
        response_model=FeedbackObject,
        responses=errors(413),
        openapi_extra=json_body(_PROPERTIES, {"request_id": "req-1", "thumb": "up"}, required=["request_id"]),
    )
    async def give_feedback(request: Request, caller: Caller) -> Response:
        database, user_id = owner_of(state, caller)
        given = await read(request, _Given, _BODY_BYTES)
        if given.thumb is None and given.stars is None:
            raise ApiError(400, "invalid_request", "Expected a `thumb`, or `stars`.", param="thumb")
        if "\0" in given.comment + "".join(given.labels):
            raise ApiError(400, "invalid_request", "comment, labels: expected no NUL characters", param="comment")
        rating = None if given.thumb is None else _RATINGS[given.thumb]
        with reachable(state):
            said, before = await feedback.put(
                database, user_id, _sane(given.request_id), rating, given.stars, given.labels, given.comment
            )
        if before is not None:
            metrics.withdrawn(before.model, before.rating, before.stars)
        metrics.said(said.model, rating, given.stars)
        return JSONResponse(_shown(said))

    @routes.get(
        "",
        summary="List one's own ratings",
        response_model=FeedbackPage,
        responses=errors(),
        openapi_extra=SECURED,
    )
    async def list_feedback(caller: Caller, after: After = "", limit: Limit = 20) -> Response:
        database, user_id = owner_of(state, caller)
        with reachable(state):
            found = await feedback.page(database, user_id, _sane(after) if after else "", limit + 1)
        page = [_shown(one) for one in found[:limit]]
        following = page[-1]["request_id"] if len(found) > limit else None
        return JSONResponse({"object": "list", "data": page, "next": following})

    @routes.delete(
        "/{request_id}",
        summary="Take a rating back",
        status_code=204,
        response_class=Response,
        responses=errors(404),
        openapi_extra=SECURED,
    )
    async def delete_feedback(request_id: str, caller: Caller) -> Response:
        database, user_id = owner_of(state, caller)
        sane = sane_request_id(request_id.encode())
        with reachable(state):
            gone = None if sane is None else await feedback.delete(database, user_id, sane)
        if gone is None:
            raise ApiError(404, "feedback_not_found", "You have not rated that request.", param="request_id")
        metrics.withdrawn(gone.model, gone.rating, gone.stars)
        return Response(status_code=204)

    return routes
