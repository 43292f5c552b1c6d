"""Tokens a minute: a level that every token raises and time lowers, at the bound's own rate.

    if level(words, at, now_ns, rate) + tokens * SCALE <= rate * SCALE:
        lift(words, at, rate, tokens)                    # estimated, before
    ...
    charge(words, at, later_ns, rate, used - tokens)     # what it really was, after

A minute's worth may be used at once, and comes back continuously. In any time t the tokens that were used are at most a
minute's worth and `rate` · t, and what a request used more than was estimated for it: that is owed, and nothing passes
until it was paid. The level is in millionths of a token; what time lowers it by is rounded down.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final

__all__ = ["MOST", "NS_PER_RATE", "SCALE", "WORDS", "charge", "drained", "level", "lift", "wait_ns"]

type Words = MutableSequence[int] | memoryview[int]

SCALE: Final = 1_000_000
NS_PER_RATE: Final = 60_000  # ns in a minute / SCALE
MOST: Final = 1 << 62

# From `at` on: the level, when it was that, and the rate of the last charge, in tokens a minute
WORDS: Final = 3


def level(words: Words, at: int, now_ns: int, rate: int) -> int:
    """The level now, brought forward."""
    known = words[at]
    since = words[at + 1]
    if now_ns > since:
        words[at + 1] = now_ns  # first: half of this, and the level is too high, not too low
        if known:
            known = max(0, known - (now_ns - since) * rate // NS_PER_RATE)
            words[at] = known
    return known


def lift(words: Words, at: int, rate: int, tokens: int) -> None:
    """Raise the level, which was just brought forward, by `tokens`."""
    words[at + 2] = rate
    words[at] += tokens * SCALE


def charge(words: Words, at: int, now_ns: int, rate: int, tokens: int) -> None:
    """Raise the level by `tokens`, or lower it where they are negative."""
    known = level(words, at, now_ns, rate) + tokens * SCALE
    words[at + 2] = rate
    words[at] = min(max(0, known), MOST)


def wait_ns(known: int, rate: int, tokens: int) -> int:
    """How long until `tokens` more may pass at this level; they are at most `rate`, which is above 0."""
    over = known - (rate - tokens) * SCALE
    return max(0, -(-over * NS_PER_RATE // rate))


def drained(words: Words, at: int, now_ns: int) -> bool:
    """Whether nothing is left of all charges."""
    return words[at] <= (now_ns - words[at + 1]) * words[at + 2] // NS_PER_RATE
