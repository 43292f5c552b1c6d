"""The shapes of conversations and what is kept, for the documentation; what comes in is checked elsewhere."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from citadel_llm.api.routes.schemas import refused

__all__ = [
    "ConversationDeleted",
    "ConversationExport",
    "ConversationObject",
    "ConversationPage",
    "DataDeleted",
    "FeedbackObject",
    "FeedbackPage",
    "ItemObject",
    "ItemPage",
    "ResponseDeleted",
    "errors",
    "json_body",
]

_ERRORS = {
    400: "The request is not valid; `param` says where",
    401: "No key or password, or one that is not known",
    403: "The caller may not do that",
    404: "There is none of that name, or it is somebody else's",
    413: "The body is too large",
    501: "Nothing is kept here: there is no database, or the key is one of a file and has no user",
    503: "The database is away; see Retry-After",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of an endpoint, for its documentation."""
    return {status: refused(_ERRORS[status]) for status in (400, 401, 403, *statuses, 501, 503)}


def json_body(properties: dict[str, Any], example: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    """An endpoint's `openapi_extra`: its body, an object of these properties and no others."""
    schema = {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
        "examples": [example],
    }  # fmt: skip
    return {
        "requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}},
        "security": [{"bearer": []}],
    }


class ConversationObject(BaseModel):
    """A conversation without its items. Times are seconds since 1970."""

    id: str
    object: Literal["conversation"]
    created_at: int
    updated_at: int
    expires_at: int = Field(description="It is deleted then, unless it is used before")
    metadata: dict[str, str]


class ConversationDeleted(BaseModel):
    """What is left of one that was deleted."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class ItemObject(BaseModel):
    """A message, or a call of a function, its output, what a model thought."""

    id: str
    type: str

    model_config = ConfigDict(extra="allow")


class _Page(BaseModel):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ConversationPage(_Page):
    """Some conversations."""

    data: list[ConversationObject]


class ItemPage(_Page):
    """Some items."""

    data: list[ItemObject]


class ConversationExport(ConversationObject):
    """A conversation with all its items."""

    items: list[ItemObject]


class ResponseDeleted(BaseModel):
    """What is left of a response that was deleted."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class DataDeleted(BaseModel):
    """How many of each were deleted."""

    object: Literal["user.data.deleted"]
    conversations: int
    responses: int
    feedback: int
    files: int
    vector_stores: int


class FeedbackObject(BaseModel):
    """A caller's opinion of an answer."""

    object: Literal["feedback"]
    request_id: str
    thumb: Literal["up", "down"] | None
    stars: int | None
    labels: list[str]
    comment: str
    model: str | None
    created_at: int


class FeedbackPage(BaseModel):
    """Some opinions, the newest first."""

    object: Literal["list"]
    data: list[FeedbackObject]
    next: str | None
