"""What a caller is told of its bounds: with each answer, and where it is refused, which bound that was and when to come
back.
"""

from __future__ import annotations

from typing import NamedTuple

from citadel_llm.api.errors import ApiError
from citadel_llm.api.limits import bucket, window
from citadel_llm.api.limits.bucket import SCALE
from citadel_llm.api.limits.lines import duration, passed_reset, requests_line, tokens_line
from citadel_llm.api.limits.plan import Entry
from citadel_llm.api.limits.table import WINDOW

__all__ = ["Fewest", "Lowest", "Refusal", "lines_of", "refusal_error"]

type Fewest = tuple[int, Entry]  # requests that are left after this one
type Lowest = tuple[int, int, Entry]  # tokens that are left after it, and the bucket's level before

_NS_PER_S = 1_000_000_000
_NEVER_S = 3600  # where waiting does not help

_WHO = {
    "key": "this key",
    "user": "this user, with all of its keys together,",
    "model": "the model `{}`, for all callers together,",
    "everyone": "this server, for all callers together,",
}
_WHAT = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrent_requests": "requests at once",
    "requests_per_day": "requests a day",
    "tokens_per_day": "tokens a day",
    "requests_per_month": "requests a month",
    "tokens_per_month": "tokens a month",
}


class Refusal(NamedTuple):
    """A bound that a request does not fit under."""

    wait_ns: int | None  # None: it never will, however long it waits
    entry: Entry
    kind: str  # a field of `Bounds`
    tokens: int = 0  # what the request was estimated to need, where it is about tokens


def refusal_error(refusal: Refusal) -> ApiError:
    """The 429."""
    entry, kind = refusal.entry, refusal.kind
    bound = getattr(entry.bounds, kind)
    who = _WHO[entry.scope].format(entry.subject)
    budget = kind.endswith(("_day", "_month"))
    reached = f"{'Budget used up' if budget else 'Rate limit reached'}: {who} may use {bound} {_WHAT[kind]}"
    if refusal.wait_ns is None:
        if bound:
            reached = (
                f"The request is too large: it needs about {refusal.tokens} tokens, and {who} may use {bound} "
                f"{_WHAT[kind]}. It can never pass; make it shorter"
            )
        return _error(budget, f"{reached}.", _NEVER_S)
    wait_s = max(1, -(-refusal.wait_ns // _NS_PER_S))
    if kind == "concurrent_requests":
        return _error(budget, f"{reached}, and so many are under way. Try again when one has ended.", wait_s)
    return _error(budget, f"{reached}. Try again in {wait_s} s.", wait_s)


def _error(budget: bool, message: str, retry_after_s: int) -> ApiError:
    code = "insufficient_quota" if budget else "rate_limit_exceeded"
    return ApiError(429, code, message, retry_after_s=retry_after_s)


def lines_of(
    words: memoryview[int], fewest: Fewest | None, lowest: Lowest | None, now_ns: int, tokens: int, *, counted: bool
) -> bytes:
    """Of the tightest bounds, by what is left after a request of so many `tokens`; `counted`: it has passed."""
    lines = ""
    if fewest is not None:
        left, entry = fewest
        limit = entry.requests or 0
        reset = passed_reset(limit) if counted else duration(window.reset_ns(words, entry.at + WINDOW, now_ns))
        lines = f"{requests_line(limit, reset)}{max(0, left if counted else left + 1)}\r\n"
    if lowest is not None:
        left, level, entry = lowest
        level += tokens * SCALE if counted else 0
        rate = entry.tokens or 0
        reset = duration(bucket.wait_ns(level, rate or 1, rate or 1))
        remaining = max(0, left if counted else left + tokens)
        lines += f"{tokens_line(rate)}{remaining}\r\nx-ratelimit-reset-tokens: {reset}\r\n"
    return lines.encode()
