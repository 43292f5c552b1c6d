"""How many requests passed in the last minute, on words of 64 bits: exact up to `EXACT` a minute, at most 0.4% too many
above.

    if used(words, at, now_ns, limit) < limit:
        add(words, at, now_ns)

Both are kept, so that a limit may change at any time: the times of the last `EXACT` requests, and how many came in
each quarter of a second. In the second, a request counts until its whole quarter is a minute old. Memory and time are
bounded whatever the limit is. A minute is half open: a request at 0 s and one at 60 s are not in the same one.

What is half-written when its process dies counts too much, if anything, and that for less than a second.
"""

from __future__ import annotations

import array
from collections.abc import MutableSequence
from typing import Final

__all__ = [
    "COUNTS",
    "EXACT",
    "MINUTE_NS",
    "QUANTUM",
    "QUANTUM_NS",
    "SLOTS",
    "TIMES",
    "TOTAL",
    "WORDS",
    "add",
    "advance",
    "reset_ns",
    "used",
    "wait_ns",
]

type Words = MutableSequence[int] | memoryview[int]

MINUTE_NS: Final = 60_000_000_000
EXACT: Final = 1000
_QUANTA: Final = 240
QUANTUM_NS: Final = MINUTE_NS // _QUANTA
SLOTS: Final = _QUANTA + 1  # the quarter that is under way too

# Where each thing is, from `at` on
_HEAD: Final = 0  # requests so far
_TAIL: Final = 1  # of them, a minute old
QUANTUM: Final = 2  # the newest quarter of a second
TOTAL: Final = 3  # requests of the last `SLOTS` quarters
COUNTS: Final = 4
TIMES: Final = COUNTS + SLOTS
WORDS: Final = TIMES + EXACT

_NONE = memoryview(array.array("q", bytes(8 * SLOTS)))


def used(words: Words, at: int, now_ns: int, limit: int) -> int:
    """Requests of the last minute, as far as `limit` needs to know."""
    if limit <= EXACT:
        head, known = words[at], words[at + 1]
        tail = max(known, head - EXACT)
        oldest = now_ns - MINUTE_NS
        times = at + TIMES
        while tail < head and words[times + tail % EXACT] <= oldest:
            tail += 1
        if tail != known:
            words[at + 1] = tail
        return head - tail
    quantum = now_ns // QUANTUM_NS
    if quantum > words[at + 2]:
        advance(words, at, quantum)
    return words[at + 3]


def add(words: Words, at: int, now_ns: int) -> None:
    """One more request."""
    quantum = now_ns // QUANTUM_NS
    if quantum > words[at + 2]:
        advance(words, at, quantum)
    head = words[at]
    words[at + TIMES + head % EXACT] = now_ns
    words[at] = head + 1
    words[at + 3] += 1
    words[at + COUNTS + quantum % SLOTS] += 1


def wait_ns(words: Words, at: int, now_ns: int, limit: int) -> int:
    """How long until one more may pass, given that no other does; `limit` is above 0."""
    count = used(words, at, now_ns, limit)
    if count < limit:
        return 0
    if limit <= EXACT:
        return words[at + TIMES + (words[at] - limit) % EXACT] + MINUTE_NS - now_ns
    newest = words[at + 2]
    for quantum in range(newest - _QUANTA, newest + 1):
        count -= words[at + COUNTS + quantum % SLOTS]
        if count < limit:
            return (quantum + SLOTS) * QUANTUM_NS - now_ns
    return MINUTE_NS


def reset_ns(words: Words, at: int, now_ns: int) -> int:
    """How long until nothing counts any more, given that no other passes."""
    head = words[at]
    return max(0, words[at + TIMES + (head - 1) % EXACT] + MINUTE_NS - now_ns) if head else 0


def advance(words: Words, at: int, quantum: int) -> None:
    """Let the newest quarter of a second be that one."""
    known = words[at + 2]
    counts = at + COUNTS
    if quantum - known >= SLOTS:
        words[counts : counts + SLOTS] = _NONE
    else:
        for passed in range(known + 1, quantum + 1):
            words[counts + passed % SLOTS] = 0
    words[at + 2] = quantum
    words[at + 3] = sum(words[counts : counts + SLOTS])
