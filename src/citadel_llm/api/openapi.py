"""The OpenAPI document: what FastAPI knows of its own routes, and the hot path's endpoints beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from citadel_llm.api.identity.guard import SECURITY
from citadel_llm.api.routes.kinds import ENDPOINTS
from citadel_llm.api.routes.limits import MAX_DEADLINE_MS
from citadel_llm.api.routes.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorBody,
)
from citadel_llm.api.routes.schemas_inference import (
    Embeddings,
    EmbeddingsRequest,
    MessageCountRequest,
    MessageRequest,
    MessageResponse,
    MessageTokens,
    ResponseObject,
    ResponseRequest,
    TextFromTokens,
    TokensFromText,
    TokensRequest,
    TokensToTextRequest,
)

__all__ = ["DESCRIPTION", "install_openapi"]

DESCRIPTION = """\
One OpenAI-compatible door to every model of this server. Point an OpenAI client at
`http://HOST:8000/v1` with a key from the operator:

    curl http://HOST:8000/v1/chat/completions -H "Authorization: Bearer $KEY" \\
      -H "Content-Type: application/json" \\
      -d '{"model": "phi3", "messages": [{"role": "user", "content": "Hello"}]}'

Each answer carries `x-request-id` (yours, if you send one), and each error OpenAI's shape.
"""

_TEXT = {"type": "string"}
_PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "x-citadel-deadline-ms": (
        {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
        "The whole answer must be there within so many milliseconds, or it is a 504",
    ),
    "x-citadel-session": (_TEXT, "Requests of one session go to one replica, where the model's policy is `session`"),
    "x-citadel-route": (
        _TEXT,
        "`explain` has the answer tell, in a header of this name, why it came from where it did",
    ),
    "x-citadel-retrieval": (_TEXT, "`optional` lets a request with `file_search` go on without it where that is away"),
    "x-citadel-cache": (_TEXT, "`allow` lets the answer come from the cache though the request does not determine it"),
}

_RATE_LIMITS = {
    f"x-ratelimit-{word}-{what}": text
    for what in ("requests", "tokens")
    for word, text in (
        ("limit", "The tightest bound, a minute"),
        ("remaining", "What is left of it"),
        ("reset", "How long until all of it is back, as `6ms` or `1m0s`"),
    )
}

_ERRORS = {
    400: "The body is not valid, asks for more than the model's context, or names a model of another kind",
    401: "No key or password, or one that is not known",
    403: "The caller lacks the permission for this, or for this model",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The model's queue is full, or too many passwords were wrong; see Retry-After",
    502: "The engine broke off or sent nonsense",
    503: "The model is down, starting, being taken out of service or too busy to answer in time; see Retry-After",
    504: "The model did not answer in time, or not before the request's own deadline",
}


def install_openapi(app: FastAPI) -> None:
    """Let `app` describe the hot path too."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _drop_fastapis_own_refusal(schema)
            _secure(schema)
            _add_hot_path(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Operation:
    """How an endpoint of the hot path is described."""

    operation_id: str
    summary: str
    request: type[BaseModel]
    answer: type[BaseModel]
    description: str = ""
    events: str = ""  # an example of its stream
    errors: Mapping[int, str] = field(default_factory=dict)  # beside those that all have


_CHAT_EVENTS = 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: [DONE]\n\n'
_TEXT_EVENTS = 'data: {"choices": [{"text": "Hel"}]}\n\ndata: [DONE]\n\n'
_RESPONSE_EVENTS = (
    'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": "Hel"}\n\n'
    'event: response.completed\ndata: {"type": "response.completed", "response": {"status": "completed"}}\n\n'
)
_MESSAGE_EVENTS = (
    'event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}}'
    '\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n'
)
_OPERATIONS = {
    "/v1/chat/completions": _Operation(
        "createChatCompletion", "Go on with a conversation", ChatRequest, ChatCompletion, events=_CHAT_EVENTS
    ),
    "/v1/completions": _Operation(
        "createCompletion", "Go on with a text", CompletionRequest, Completion, events=_TEXT_EVENTS
    ),
    "/v1/responses": _Operation(
        "createResponse",
        "Respond to input",
        ResponseRequest,
        ResponseObject,
        "With `previous_response_id` or `conversation` it follows what was said before. `x-citadel-stored` says "
        "whether the response was kept; where that is impossible, a request that asks for it is refused "
        "(501 `not_kept`), or told to try again (503), and one that does not is answered all the same. Nothing runs in "
        "the `background`.",
        _RESPONSE_EVENTS,
        {501: "Something is to be kept or found again, and nothing is kept here"},
    ),
    "/v1/messages": _Operation(
        "createMessage",
        "Go on with a conversation, in the shape of Anthropic's API",
        MessageRequest,
        MessageResponse,
        "Errors have the shape of all errors here, which is OpenAI's; "
        "`error.type` and `error.message` are where Anthropic's clients look for them.",
        _MESSAGE_EVENTS,
    ),
    "/v1/messages/count_tokens": _Operation(
        "countMessageTokens", "Count a conversation's tokens", MessageCountRequest, MessageTokens
    ),
    "/v1/embeddings": _Operation(
        "createEmbedding",
        "Turn texts into vectors",
        EmbeddingsRequest,
        Embeddings,
        "For models whose kind is `embedding`.",
    ),
    "/tokenize": _Operation("tokenize", "Turn a text into the model's tokens", TokensRequest, TokensFromText),
    "/detokenize": _Operation("detokenize", "Turn tokens into text", TokensToTextRequest, TextFromTokens),
}


def _drop_fastapis_own_refusal(schema: dict[str, Any]) -> None:
    """FastAPI promises a 422 of its own wherever there is a parameter; what is invalid here is a 400 in our shape."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)


def _secure(schema: dict[str, Any]) -> None:
    """Say of each endpoint of the admin API that it wants to know who calls."""
    for path, operations in schema["paths"].items():
        if path.startswith("/admin/"):
            for operation in operations.values():
                operation.setdefault("security", SECURITY)


def _add_hot_path(schema: dict[str, Any]) -> None:
    shapes: list[type[BaseModel]] = [ErrorBody]
    for operation in _OPERATIONS.values():
        shapes += [operation.request, operation.answer]
    _, definitions = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template="#/components/schemas/{model}"
    )
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "basic": {"type": "http", "scheme": "basic"},
    }
    for path, operation in _OPERATIONS.items():
        schema["paths"][path] = {"post": _described(operation, named_events=ENDPOINTS[path].named_events)}


def _json(shape: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}


def _stream(example: str, *, named_events: bool) -> dict[str, Any]:
    """A stream: its `schema` would be taken for an event's or for the whole text's, `itemSchema` is each event's."""
    event: dict[str, Any] = {
        "type": "object",
        "properties": {"data": {"type": "string", "pattern": r"^(\{|\[DONE\]$)"}},
        "required": ["data"],
    }
    if named_events:
        event["properties"]["event"] = _TEXT
        event["required"].append("event")
    return {"itemSchema": event, "example": example}


def _described(operation: _Operation, *, named_events: bool) -> dict[str, Any]:
    header = {"schema": _TEXT}
    given = {**header, "required": True}
    content = _json(operation.answer.__name__)
    if operation.events:
        content["text/event-stream"] = _stream(operation.events, named_events=named_events)
    return {
        "tags": ["inference"],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.operation_id,
        "security": SECURITY,
        "parameters": [
            {"name": name, "in": "header", "required": False, "schema": shape, "description": text}
            for name, (shape, text) in _PARAMETERS.items()
        ],
        "requestBody": {"required": True, "content": _json(operation.request.__name__)},
        "responses": {
            "200": {
                "description": f"The answer: JSON{', or with `stream` server-sent events' if operation.events else ''}",
                "headers": {
                    "x-request-id": given,
                    "x-citadel-model": given,
                    "x-citadel-fallback": {**header, "description": "`from=MODEL`, where another one answered"},
                    "x-citadel-route": header,
                    "x-citadel-cache": {"schema": {"enum": ["hit", "miss", "store", "bypass"]}, "required": True},
                    **{name: {**header, "description": text} for name, text in _RATE_LIMITS.items()},
                },
                "content": content,
            },
            **{str(status): _refusal(status, text) for status, text in {**_ERRORS, **operation.errors}.items()},
        },
    }


def _refusal(status: int, text: str) -> dict[str, Any]:
    headers: dict[str, Any] = {"x-request-id": {"schema": _TEXT, "required": True}}
    if status in (429, 503):
        headers["retry-after"] = {
            "schema": {"type": "integer", "minimum": 1}, "required": True, "description": "Seconds"
        }  # fmt: skip
    return {"description": text, "headers": headers, "content": _json("ErrorBody")}
