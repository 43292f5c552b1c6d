"""`"model": "auto"`: the smallest model that fits the request. Deterministic, given what is known just then.

In the order of `size_gb` (then of the configuration), the first model that

1. can do what the request uses: tools, images, response_format (`features`),
2. has the context for it: estimated prompt + answer tokens <= `max_tokens`,
3. has a replica that may be used, and room in its queue,
4. is expected to be done in time, where the request has a deadline: expected wait + time to first
   token + time per token * answer tokens, from moving averages; what is not known yet counts as 0.

Where only the fourth fails, for every model, the one that is expected to be done first is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from citadel_llm.utils.config import Auto

__all__ = ["Candidate", "Choice", "Needs", "choose", "needs_of"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model."""

    prompt_tokens: int
    answer_tokens: int
    features: frozenset[str] = frozenset()
    remaining_s: float | None = None  # until its deadline


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a model at the moment."""

    name: str
    size_gb: float
    max_tokens: int | None
    features: frozenset[str]
    state: str  # "" where it can be asked, else why not, in a word
    wait_s: float
    latency_s: float | None  # of an answer of this length; None where not known


@dataclass(frozen=True, slots=True)
class Choice:
    """The model, or None and the most hopeful of the obstacles; and for each model passed over, why."""

    name: str | None
    obstacle: str = ""  # "features", "length" or "state"
    passed_over: list[tuple[str, str]] = field(default_factory=list)


_OBSTACLES = ("features", "length", "state", "late")  # the later, the nearer it came


def choose(needs: Needs, candidates: Sequence[Candidate]) -> Choice:
    """Choose among the models, given in the configuration's order."""
    passed: list[tuple[str, str]] = []
    nearest = 0
    late: list[tuple[float, int, str]] = []
    for rank, model in enumerate(sorted(candidates, key=lambda model: model.size_gb)):
        obstacle, reason = _obstacle(needs, model)
        if not reason:
            return Choice(model.name, passed_over=passed)
        passed.append((model.name, reason))
        nearest = max(nearest, _OBSTACLES.index(obstacle))
        if obstacle == "late":
            late.append((model.wait_s + (model.latency_s or 0.0), rank, model.name))
    if late:
        name = min(late)[2]
        return Choice(name, passed_over=[pair for pair in passed if pair[0] != name])
    return Choice(None, _OBSTACLES[nearest], passed)


def _obstacle(needs: Needs, model: Candidate) -> tuple[str, str]:
    missing = needs.features - model.features
    if missing:
        return "features", f"no {'+'.join(sorted(missing))}"
    tokens = needs.prompt_tokens + needs.answer_tokens
    if model.max_tokens is not None and tokens > model.max_tokens:
        return "length", f"about {tokens} tokens > {model.max_tokens}"
    if model.state:
        return "state", model.state
    if needs.remaining_s is not None:
        expected_s = model.wait_s + (model.latency_s or 0.0)
        if expected_s > needs.remaining_s:
            return "late", f"about {expected_s:.2f} s > {needs.remaining_s:.2f} s"
    return "", ""


# What a body tells of its needs

_Tokens = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]  # 64.0 is a whole number to JSON


class _Format(msgspec.Struct):
    type: str = "text"


class _Body(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    max_output_tokens: _Tokens | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[msgspec.Raw] | None = None
    response_format: _Format | None = None


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


_body = msgspec.json.Decoder(_Body)
_messages = msgspec.json.Decoder(list[_Message])


def needs_of(body: bytes, config: Auto, remaining_s: float | None) -> Needs:
    """Read a request's needs. Raises msgspec.MsgspecError where its fields have the wrong types."""
    request = _body.decode(body)
    features = set()
    if request.tools or request.functions:
        features.add("tools")
    if request.response_format is not None and request.response_format.type != "text":
        features.add("response_format")
    text = sum(memoryview(field).nbytes for field in (request.messages, request.prompt, request.input))
    for definition in (*(request.tools or ()), *(request.functions or ())):
        text += memoryview(definition).nbytes
    extra_tokens = 0
    if b'"image' in body or b'"input_image"' in body:
        images, other = _images(request.messages if memoryview(request.messages) else request.input)
        if images:
            features.add("images")
            text, extra_tokens = other, images * config.image_tokens
    fields = (request.max_completion_tokens, request.max_output_tokens, request.max_tokens)
    wanted = next((tokens for tokens in fields if tokens is not None), None)
    return Needs(
        prompt_tokens=math.ceil(text / config.bytes_per_token) + extra_tokens,
        answer_tokens=config.answer_tokens if wanted is None else math.ceil(wanted),
        features=frozenset(features),
        remaining_s=remaining_s,
    )


def _images(messages: msgspec.Raw) -> tuple[int, int]:
    """How many images there are, and the bytes of text beside them."""
    images = text = 0
    for message in _messages.decode(messages):
        content = message.content
        if isinstance(content, str):
            text += len(content.encode())
        for part in content if isinstance(content, list) else ():
            images += "image" in part.type
            text += len(part.text.encode())
    return images, text
