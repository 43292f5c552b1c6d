"""How many tokens an answer says it used, in each shape that the endpoints have for it.

Chat, completions and embeddings count `prompt_tokens` and `completion_tokens`, responses and messages `input_tokens`
and `output_tokens`; a stream of responses says it inside its last event's `response`.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from citadel_llm.api.middleware.exchange import Exchange

__all__ = ["note_stream_usage", "note_usage"]

_BEGIN = re.compile(rb'"usage": ?\{')
_OBJECT_BYTES = 4096


type _Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    response: _Answer


_usage = msgspec.json.Decoder(_Usage)
_answer = msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)


def note_usage(exchange: Exchange, body: bytes) -> None:
    """Take over what a whole answer, or one event of a stream, says; nothing where it says nothing."""
    try:
        usage = _answer.decode(body).usage or _event.decode(body).response.usage
    except (ValueError, RecursionError):
        return
    if usage is not None:
        _take(exchange, usage)


def note_stream_usage(exchange: Exchange, tail: bytes) -> None:
    """Usage comes in one of a stream's last events, of which `tail` holds the end."""
    for line in reversed(tail.splitlines()):
        if line.startswith(b"data: {") and b'"usage"' in line:
            note_usage(exchange, line[6:])
            if exchange.prompt_tokens is not None:
                return
    _note_cut_usage(exchange, tail)


def _note_cut_usage(exchange: Exchange, tail: bytes) -> None:
    """The last event of a long response repeats the whole text: `tail` may hold only its end, where the usage is.

    Inside a JSON string the quotes would be escaped, so that what a model or a caller wrote is not mistaken for it.
    """
    begins = [match.end() - 1 for match in _BEGIN.finditer(tail)]
    if not begins:
        return
    text, depth = tail[begins[-1] : begins[-1] + _OBJECT_BYTES], 0
    for at, byte in enumerate(text):
        depth += (byte == 0x7B) - (byte == 0x7D)
        if depth == 0:
            try:
                _take(exchange, _usage.decode(text[: at + 1]))
            except ValueError:
                return
            return


def _take(exchange: Exchange, usage: _Usage) -> None:
    exchange.prompt_tokens = usage.prompt_tokens or usage.input_tokens or 0
    exchange.completion_tokens = usage.completion_tokens or usage.output_tokens or 0
