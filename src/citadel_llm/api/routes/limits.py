"""What a request may ask for at most, told before an engine is troubled with it."""

from __future__ import annotations

from typing import Protocol

from citadel_llm.api.errors import ApiError
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["MAX_DEADLINE_MS", "asks_too_much", "check_max_tokens"]

MAX_DEADLINE_MS = 999_999_999  # what a request may name as its deadline
_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class _Asking(Protocol):
    """The fields by which the endpoints' requests bound the length of an answer, in tokens."""

    max_tokens: int | float | None
    max_completion_tokens: int | float | None
    max_output_tokens: int | float | None


def check_max_tokens(request: _Asking, model: ServedModel) -> None:
    """Raises a 400 that names the field where more tokens are asked for than the model's whole context, or half of one.

    A prompt and an answer that are too long only together are found by the engine, which alone can count the prompt.
    """
    for name in _FIELDS:
        if type(asked := getattr(request, name)) is float and not asked.is_integer():
            message = f"The body is not a valid request: Expected a whole number, got {asked} - at `$.{name}`"
            raise ApiError(400, "invalid_request", message, param=name)
    field = asks_too_much(request, model)
    if field is not None:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"`{field}` is {getattr(request, field)}, and the model `{model.name}` has a context of "
            f"{model.config.max_tokens} tokens, which the request and its answer share.",
            param=field,
        )


def asks_too_much(request: _Asking, model: ServedModel) -> str | None:
    """The field, if there is one, that asks for more tokens than the model's whole context."""
    limit = model.config.max_tokens
    if limit is not None:
        for field in _FIELDS:
            asked = getattr(request, field)
            if asked is not None and asked > limit:
                return field
    return None
