"""What requests used beyond their estimates, or less: told without the lock, taken into account by whoever looks next.

    tell(words, at, place, now_ns, used - reserved)     # by the process that holds the place, without the lock
    fold(words, at, places, later_ns, rate, budgeted)   # under it, before anything is looked at

Each process adds to a column of its own. Under the lock it is seen by how much all columns together have grown since
the last time; that counts from the moment when the last of it was told.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final

from citadel_llm.api.limits import bucket, budget

__all__ = ["BUCKET", "BUDGET", "COLUMNS", "FOLDED", "TOLD_AT", "fold", "tell"]

type Words = MutableSequence[int] | memoryview[int]

# From a record's beginning on
BUCKET: Final = 1
BUDGET: Final = BUCKET + bucket.WORDS
TOLD_AT: Final = 14
FOLDED: Final = 15
COLUMNS: Final = 1344


def tell(words: Words, at: int, place: int, now_ns: int, tokens: int) -> None:
    """So much more, or less."""
    words[at + COLUMNS + place] += tokens
    words[at + TOLD_AT] = now_ns


def fold(words: Words, at: int, places: int, now_ns: int, rate: int | None, budgeted: bool) -> None:
    """Take what was told into account. A process that dies amid it leaves too much counted, if anything."""
    first = at + COLUMNS
    told = sum(words[first : first + places])
    more = told - words[at + FOLDED]
    if not more:
        return
    if more < 0:
        words[at + FOLDED] = told
    if rate is not None:
        bucket.charge(words, at + BUCKET, min(now_ns, words[at + TOLD_AT]), rate, more)
    if budgeted:
        budget.spend(words, at + BUDGET, 0, more)
    words[at + FOLDED] = told
