"""The OpenAPI document: what FastAPI knows of its own routes, and the hot path's endpoints beside them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from citadel_llm.api.routes.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorBody,
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

_PARAMETERS = {
    "x-citadel-deadline-ms": "The whole answer must be there within so many milliseconds, or it is a 504",
    "x-citadel-session": "Requests of one session go to one replica, where the model's policy is `session`",
    "x-citadel-route": "`explain` has the answer tell, in a header of this name, why it came from where it did",
}

_ERRORS = {
    400: "The body is not valid",
    401: "No key, or one that is not known",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "The model's queue is full; see Retry-After",
    502: "The engine broke off or sent nonsense",
    503: "The model is down, starting, being taken out of service or too busy to answer in time; see Retry-After",
    504: "The model did not answer in time, or not before the request's own deadline",
}


def install_openapi(app: FastAPI) -> None:
    """Let `app` describe the hot path too."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _add_hot_path(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_hot_path(schema: dict[str, Any]) -> None:
    shapes: list[type[BaseModel]] = [ChatRequest, ChatCompletion, CompletionRequest, Completion, ErrorBody]
    _, definitions = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template="#/components/schemas/{model}"
    )
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    paths = schema["paths"]
    paths["/v1/chat/completions"] = _operation(
        "Go on with a conversation", "createChatCompletion", "ChatRequest", "ChatCompletion"
    )
    paths["/v1/completions"] = _operation("Go on with a text", "createCompletion", "CompletionRequest", "Completion")


def _json(shape: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}


def _operation(summary: str, operation_id: str, request: str, answer: str) -> dict[str, Any]:
    stream = {
        "schema": {"type": "string"},
        "example": 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: [DONE]\n\n',
    }
    header = {"schema": {"type": "string"}}
    return {
        "post": {
            "tags": ["inference"],
            "summary": summary,
            "operationId": operation_id,
            "security": [{"bearer": []}],
            "parameters": [
                {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": text}
                for name, text in _PARAMETERS.items()
            ],
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {
                "200": {
                    "description": "The answer: JSON, or with `stream` server-sent events",
                    "headers": {
                        "x-request-id": header,
                        "x-citadel-model": header,
                        "x-citadel-fallback": {**header, "description": "`from=MODEL`, where another one answered"},
                        "x-citadel-route": header,
                    },
                    "content": {**_json(answer), "text/event-stream": stream},
                },
                **{
                    str(status): {"description": text, "content": _json("ErrorBody")}
                    for status, text in _ERRORS.items()
                },
            },
        }
    }
