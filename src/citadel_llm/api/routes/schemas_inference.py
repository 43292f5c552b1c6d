"""The shapes of the endpoints beside chat and completions, for the documentation; they check nothing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from citadel_llm.api.routes.schemas import MOST_TOKENS, ChatMessage

__all__ = [
    "Embeddings",
    "EmbeddingsRequest",
    "MessageCountRequest",
    "MessageRequest",
    "MessageResponse",
    "MessageTokens",
    "ResponseObject",
    "ResponseRequest",
    "TextFromTokens",
    "TokensFromText",
    "TokensRequest",
    "TokensToTextRequest",
]

_MODEL = Field(description="The id of a model in /v1/models")


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="allow", json_schema_extra={"examples": [example]})


class ConversationReference(BaseModel):
    """A conversation, by its id."""

    id: str

    model_config = ConfigDict(extra="allow")


class ResponseRequest(BaseModel):
    """Input to respond to, and what it follows."""

    model: str = _MODEL
    input: str | list[dict[str, Any]] = Field(description="A text, or items; all of them, where it follows nothing")
    instructions: str | None = Field(None, description="What a system message would say")
    max_output_tokens: int | None = Field(
        None, ge=1, le=MOST_TOKENS, description="At most so many tokens are generated"
    )
    temperature: float | None = Field(None, ge=0, description="The model's own default is used where none is given")
    stream: bool = False
    store: bool | None = Field(
        None, description="Whether the response is kept; where nothing is said, it is if that is possible"
    )
    previous_response_id: str | None = Field(None, description="A kept response that this one follows")
    conversation: str | ConversationReference | None = Field(
        None, description="Its items go before the input, and input and answer are added to it"
    )

    model_config = _example({"model": "phi3", "input": "Name three uses of a paperclip.", "max_output_tokens": 64})


class InputUsage(BaseModel):
    """Tokens used."""

    input_tokens: int
    output_tokens: int

    model_config = ConfigDict(extra="allow")


class ResponseObject(BaseModel):
    """The answer to a responses request."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete", "failed"]
    output: list[dict[str, Any]]
    usage: InputUsage

    model_config = _example(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1700000000,
            "model": "phi3",
            "status": "completed",
            "output": [
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Holding paper …", "annotations": []}],
                }
            ],
            "usage": {"input_tokens": 12, "output_tokens": 5, "total_tokens": 17},
        }
    )


class EmbeddingsRequest(BaseModel):
    """Texts to turn into vectors, one for each."""

    model: str = _MODEL
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    truncate_prompt_tokens: int | None = Field(
        None, description="Keep only so many tokens of each text; a longer one than the model's context is refused else"
    )

    model_config = _example({"model": "minilm", "input": ["A man is eating food.", "Somebody has lunch."]})


class EmbeddingObject(BaseModel):
    """One text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens used."""

    prompt_tokens: int
    total_tokens: int

    model_config = ConfigDict(extra="allow")


class Embeddings(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingObject]
    usage: EmbeddingsUsage

    model_config = _example(
        {
            "object": "list",
            "model": "minilm",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.033, -0.012, 0.087]}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )


class TokensRequest(BaseModel):
    """A text or a conversation, as the model's own tokenizer and chat format see it."""

    model: str = _MODEL
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, description="In the place of `prompt`")
    add_special_tokens: bool = True

    model_config = _example({"model": "phi3", "prompt": "The quick brown fox"})


class TokensFromText(BaseModel):
    """The tokens."""

    count: int
    max_model_len: int = Field(description="The context, in tokens")
    tokens: list[int]

    model_config = _example({"count": 4, "max_model_len": 4096, "tokens": [450, 4996, 17354, 1701]})


class TokensToTextRequest(BaseModel):
    """Tokens to write out."""

    model: str = _MODEL
    tokens: list[int]

    model_config = _example({"model": "phi3", "tokens": [450, 4996, 17354, 1701]})


class TextFromTokens(BaseModel):
    """The text."""

    prompt: str

    model_config = _example({"prompt": "The quick brown fox"})


class MessageCountRequest(BaseModel):
    """A conversation in the shape of Anthropic's API."""

    model: str = _MODEL
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None

    model_config = _example({"model": "phi3", "messages": [{"role": "user", "content": "Hello"}]})


class MessageRequest(MessageCountRequest):
    """A conversation to go on with, in the shape of Anthropic's API."""

    max_tokens: int = Field(ge=1, le=MOST_TOKENS, description="At most so many tokens are generated")
    temperature: float | None = None
    stream: bool = False

    model_config = _example({"model": "phi3", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]})


class MessageResponse(BaseModel):
    """The answer to a messages request."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: InputUsage

    model_config = _example(
        {
            "id": "chatcmpl-1",
            "type": "message",
            "role": "assistant",
            "model": "phi3",
            "content": [{"type": "text", "text": "Hello! What can I do for you?"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 7, "output_tokens": 9},
        }
    )


class MessageTokens(BaseModel):
    """How many tokens the conversation has."""

    input_tokens: int

    model_config = _example({"input_tokens": 7})
