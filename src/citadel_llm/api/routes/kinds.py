"""Which endpoints are forwarded to an engine, and which kinds of models each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from citadel_llm.api.errors import ApiError
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["ENDPOINTS", "PERMISSION", "Endpoint", "wrong_kind"]

_GENERATE = frozenset({"generate"})
_EMBEDDING = frozenset({"embedding"})
# Whoever asks a model of this kind needs this permission, for that model.
PERMISSION: Mapping[str, str] = {"generate": "inference", "embedding": "embeddings"}
_DOES = {"generate": "generates text", "embedding": "makes embeddings"}


@dataclass(frozen=True)
class Endpoint:
    """What the gateway must know of an endpoint that it forwards."""

    kinds: frozenset[str]
    streams: bool = False
    tokens: bool = True  # what it does counts in tokens, beside requests
    tells_usage: bool = True  # its streams say how many tokens there were, without being asked
    named_events: bool = False  # its streams name their events, so that an error needs a name too


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(_GENERATE, streams=True, tells_usage=False),
    "/v1/completions": Endpoint(_GENERATE, streams=True, tells_usage=False),
    "/v1/responses": Endpoint(_GENERATE, streams=True, named_events=True),
    "/v1/messages": Endpoint(_GENERATE, streams=True, named_events=True),
    "/v1/messages/count_tokens": Endpoint(_GENERATE, tokens=False),
    "/v1/embeddings": Endpoint(_EMBEDDING),
    "/tokenize": Endpoint(_GENERATE | _EMBEDDING, tokens=False),
    "/detokenize": Endpoint(_GENERATE | _EMBEDDING, tokens=False),
}


def wrong_kind(path: str, model: ServedModel, models: Mapping[str, ServedModel]) -> ApiError:
    """The 400 for an endpoint that is not for models of this kind; it names those that it is for."""
    kinds = ENDPOINTS[path].kinds
    able = ", ".join(f"`{name}`" for name, other in models.items() if other.config.kind in kinds)
    where = ", ".join(other for other, endpoint in ENDPOINTS.items() if model.config.kind in endpoint.kinds)
    return ApiError(
        400,
        "unsupported_model",
        f"The model `{model.name}` {_DOES[model.config.kind]} and can't be asked at {path}. "
        f"{f'These can: {able}' if able else 'No model here can'}. It can be asked at {where}.",
        param="model",
    )
