"""The shapes of requests and answers, for the documentation.

Bodies of completions are forwarded as they are, so these models describe them and check
nothing: the engine takes every parameter of OpenAI's API that it knows.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "MOST_TOKENS",
    "ChatCompletion",
    "ChatRequest",
    "Completion",
    "CompletionRequest",
    "EngineHealth",
    "ErrorBody",
    "Health",
    "Live",
    "ModelList",
    "ModelObject",
    "Ready",
    "StateName",
    "refused",
]


# Far beyond any context. Without a bound the document would allow 1e300, which is an integer to JSON Schema.
MOST_TOKENS = 2**31 - 1


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ChatMessage(_Open):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class _Common(_Open):
    model: str = Field(
        description="The id of a model in /v1/models, one of its aliases, or `auto` for the smallest that fits"
    )
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS, description="At most so many tokens are generated")
    temperature: float | None = Field(
        None, ge=0, description="0 is deterministic; the model's own default is used where none is given"
    )
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = Field(False, description="Answer piece by piece, as server-sent events")
    stream_options: dict[str, Any] | None = Field(
        None, description='`{"include_usage": true}` adds the token counts at the end of a stream'
    )


class ChatRequest(_Common):
    """A conversation to go on with."""

    messages: list[ChatMessage]

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": "phi3",
                    "messages": [{"role": "user", "content": "Name three uses of a paperclip."}],
                    "max_tokens": 64,
                }
            ]
        },
    )


class CompletionRequest(_Common):
    """A text to go on with."""

    prompt: str | list[str] | list[int] | list[list[int]]

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "phi3", "prompt": "The quick brown fox", "max_tokens": 16}]},
    )


class Usage(_Open):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatChoice(_Open):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: str | None


class ChatCompletion(_Open):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Open):
    """One continuation."""

    index: int
    text: str
    finish_reason: str | None


class Completion(_Open):
    """The answer to a completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


def refused(description: str | None = None) -> dict[str, Any]:
    """An entry of an endpoint's `responses`: an `ErrorBody`.

    By its name in the document, for FastAPI would make a validator of its own for the `model` of each entry.
    """
    entry: dict[str, Any] = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}
    return entry if description is None else {"description": description, **entry}


class ErrorBody(BaseModel):
    """Every error's body."""

    error: ErrorDetail

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "The model `gpt` does not exist here. These do: `phi3`.",
                        "type": "invalid_request_error",
                        "param": "model",
                        "code": "model_not_found",
                        "request_id": "req-0f1e2d3c4b5a69788796a5b4c3d2e1f0",
                    }
                }
            ]
        }
    )


type StateName = Literal["up", "starting", "down", "draining"]


class ModelObject(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    display_name: str
    kind: Literal["generate", "embedding"] = Field(description="What it does: which endpoints take it follows from it")
    max_model_len: int | None = Field(description="The context, in tokens")
    aliases: list[str] = Field(description="Other names that it answers to")
    state: StateName


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelObject]


class Live(BaseModel):
    """This instance answers."""

    status: Literal["ok"]
    instance: str
    version: str


class Ready(BaseModel):
    """Whether this instance takes requests."""

    status: Literal["ready", "not ready"]
    instance: str


class EngineHealth(BaseModel):
    """One engine as this instance sees it."""

    address: str
    state: StateName
    reachable: bool
    draining: bool = Field(description="Finishes what it has, and gets nothing new")
    drained: bool = Field(description="For an operator said so: `PUT /admin/v1/drain/MODEL`")
    latency_ms: float | None
    in_flight: int
    waiting: int = Field(description="Requests that wait inside the engine, as it last said")
    breaker: Literal["closed", "half_open", "open"]
    ejected: bool = Field(description="Left out for a while, for failing where others answered")
    last_error: str | None


class ModelHealth(BaseModel):
    """One model as this instance sees it."""

    state: StateName
    in_flight: int
    queued: int
    engines: list[EngineHealth]


class VectorHealth(BaseModel):
    """Qdrant, as the last calls found it."""

    up: bool | None
    breaker: Literal["closed", "half_open", "open"]


class AuditHealth(BaseModel):
    """The audit log's journal."""

    state: Literal["ok", "waiting", "full"] = Field(
        description="`waiting`: for the database; `full`: there is no room for more, and new requests may be refused"
    )
    pending: int = Field(description="Records that are not in the database yet")
    spool_bytes: int
    spool_limit_bytes: int
    error: str | None


class Health(BaseModel):
    """The whole."""

    status: Literal["ok", "degraded", "down"]
    instance: str
    version: str
    draining: bool
    dependencies: dict[str, Literal["up", "down"]] = Field(
        description="Those that are configured; while one is down, inference goes on"
    )
    audit: AuditHealth | None = Field(None, description="Of this instance; none where nothing is audited")
    models: dict[str, ModelHealth]
    vector: VectorHealth | None  # none: turned off
