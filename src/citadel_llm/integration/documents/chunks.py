"""A text in chunks of tokens that overlap, and each chunk in parts that an embedding model takes.

Tokens are counted by the model's own tokenizer, word by word: text is never cut inside a word, unless that is longer
than any word is. So what a chunk says it has is what the model finds in it, give or take what stands between words.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import batched
from typing import NamedTuple

__all__ = ["Chunk", "chunks", "units"]

# A word with what follows it. Without spaces, it is cut before it could have more tokens than the smallest chunk.
_UNIT = re.compile(r"\S{1,24}(?:\s{1,16})?|\s+")
_BATCH = 2048

type Count = Callable[[Sequence[str]], Sequence[int]]


class Chunk(NamedTuple):
    """Some text, whole, and in parts of so many tokens as the embedding model takes."""

    text: str
    parts: list[str]


def units(text: str) -> Iterator[str]:
    """The text's words; runs of spaces beyond any need are left out."""
    for found in _UNIT.finditer(text):
        word = found[0]
        if not word.isspace():
            yield word


def chunks(
    texts: Iterable[str], count: Count, *, max_tokens: int, overlap_tokens: int, part_tokens: int
) -> Iterator[Chunk]:
    """Chunks of at most `max_tokens`, of which each begins with at most `overlap_tokens` of the one before it.

    `texts` follow one another, and may be a page each; `count` gives the number of tokens of each of some words.
    """
    held: deque[tuple[str, int]] = deque()
    tokens = 0
    fresh = False  # whether `held` has anything that no chunk had
    for word, size in _counted(texts, count):
        if held and tokens + size > max_tokens:
            if fresh:
                yield _chunk(held, part_tokens)
            while held and (tokens > overlap_tokens or tokens + size > max_tokens):
                tokens -= held.popleft()[1]
            fresh = False
        held.append((word, size))
        tokens += size
        fresh = True
    if fresh:
        yield _chunk(held, part_tokens)


def _counted(texts: Iterable[str], count: Count) -> Iterator[tuple[str, int]]:
    words = (word for text in texts for word in units(text))
    for some in batched(words, _BATCH):
        yield from zip(some, count(some), strict=True)


def _chunk(held: Iterable[tuple[str, int]], part_tokens: int) -> Chunk:
    parts: list[str] = []
    part: list[str] = []
    tokens = 0
    words = list(held)
    for word, size in words:
        if part and tokens + size > part_tokens:
            parts.append("".join(part).strip())
            part, tokens = [], 0
        part.append(word)
        tokens += size
    parts.append("".join(part).strip())
    return Chunk("".join(word for word, _ in words).strip(), parts)
