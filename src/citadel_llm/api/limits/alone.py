"""The short way for most requests: one subject's bounds, no budgets, and room under all of them.

It does what `Limiter` does by `window`, `bucket` and `settlement`, in one go and without a call for each word: a
third of the time. Where anything is not as most times, it has done nothing, and the long way finds out what it is.
"""

from __future__ import annotations

from citadel_llm.api.limits import bucket, budget, settlement, window
from citadel_llm.api.limits.lines import duration
from citadel_llm.api.limits.plan import Entry
from citadel_llm.api.limits.table import BUCKET, BUDGET, COLUMNS, HIGH, TOUCHED, WINDOW, Table

__all__ = ["enter_alone"]

# A name of this module is found sooner than one of another.
_EXACT, _QUANTUM_NS, _SLOTS = window.EXACT, window.QUANTUM_NS, window.SLOTS
_QUANTUM, _TOTAL = WINDOW + window.QUANTUM, WINDOW + window.TOTAL
_COUNTS, _TIMES = WINDOW + window.COUNTS, WINDOW + window.TIMES
_SINCE, _RATE = BUCKET + 1, BUCKET + 2
_NS_PER_RATE, _SCALE, _MOST = bucket.NS_PER_RATE, bucket.SCALE, bucket.MOST
_TOLD, _TOLD_AT, _FOLDED = settlement.COLUMNS, settlement.TOLD_AT, settlement.FOLDED
_SINCE_BUDGET = BUDGET + budget.SINCE


def enter_alone(  # noqa: PLR0911, PLR0912, PLR0915 — a call would cost more than what it did
    table: Table, entry: Entry, tokens: int, now: int
) -> bytes | None:
    """Count a request in, under the lock; the lines for its answer's head. None: it takes the long way.

    What a process that dies amid it has written counts too much, if anything.
    """
    words, record = table.words, entry.record
    # The first half of a name is 64 bits of a hash: nobody else's.
    if words[entry.index] != entry.digest[0] or record[_SINCE_BUDGET]:
        return None
    limit, rate, at_once = entry.requests, entry.tokens, entry.at_once
    if rate == 0:
        return None
    places = words[HIGH]
    left = left_tokens = level = since = told = more = quantum = 0
    if at_once is not None and (
        (record[COLUMNS] if places == 1 else sum(record[COLUMNS : COLUMNS + places])) >= at_once
    ):
        return None
    if limit is not None:
        quantum = now // _QUANTUM_NS
        if limit <= _EXACT:
            left = limit - window.used(record, WINDOW, now, limit) - 1
        else:
            if quantum > record[_QUANTUM]:
                window.advance(record, WINDOW, quantum)
            left = limit - record[_TOTAL] - 1
        if left < 0:
            return None
    if rate is not None:
        told = record[_TOLD] if places == 1 else sum(record[_TOLD : _TOLD + places])
        more = told - record[_FOLDED]
        level, since = record[BUCKET], record[_SINCE]
        if more:  # counts from when it was told
            told_at = min(record[_TOLD_AT], now)
            if told_at > since:
                fallen = (told_at - since) * rate // _NS_PER_RATE
                level = level - fallen if level > fallen else 0
                since = told_at
            level += more * _SCALE
            level = 0 if level < 0 else level if level < _MOST else _MOST
        if now > since:
            if level:
                fallen = (now - since) * rate // _NS_PER_RATE
                level = level - fallen if level > fallen else 0
            since = now
        left_tokens = rate - tokens - -(-level // _SCALE)
        if left_tokens < 0:
            if tokens:
                return None
            left_tokens = 0

    record[TOUCHED] = now
    if at_once is not None:
        record[COLUMNS + table.place] += 1
    if limit is not None:
        if quantum > record[_QUANTUM]:
            window.advance(record, WINDOW, quantum)
        count = record[WINDOW]
        record[_TIMES + count % _EXACT] = now
        record[WINDOW] = count + 1
        record[_TOTAL] += 1
        record[_COUNTS + quantum % _SLOTS] += 1
    if rate is None:
        return b"" if limit is None else f"{entry.requests_line}{left}\r\n".encode()
    if more < 0:
        record[_FOLDED] = told
    record[_SINCE] = since  # first: half of this, and the level is too high, not too low
    if tokens or more:
        record[_RATE] = rate
        level += tokens * _SCALE
    record[BUCKET] = level
    if more > 0:
        record[_FOLDED] = told
    refilled = duration(-(-level * _NS_PER_RATE // rate))
    lines = f"{entry.tokens_line}{left_tokens}\r\nx-ratelimit-reset-tokens: {refilled}\r\n"
    return lines.encode() if limit is None else f"{entry.requests_line}{left}\r\n{lines}".encode()
