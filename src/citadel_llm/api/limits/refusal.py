"""What a caller is told of its bounds: headers as OpenAI has them, and refusals that say which bound it was and when to
come back.
"""

from __future__ import annotations

from typing import NamedTuple

from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.limits import bucket, window
from citadel_llm.api.limits.bucket import SCALE
from citadel_llm.api.limits.plan import Entry
from citadel_llm.api.limits.table import WINDOW

__all__ = ["Fewest", "Lowest", "Refusal", "duration", "headers_of", "refusal_error"]

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


def duration(ns: int) -> bytes:
    """A length of time, rounded up to milliseconds: `6ms`, `1.5s`, `1m0s`, `2h0m0s`."""
    ms = -(-ns // 1_000_000)
    if ms < 1000:
        return b"%dms" % ms if ms else b"0s"
    minutes, ms = divmod(ms, 60_000)
    seconds = b"%d" % (ms // 1000) if not ms % 1000 else (b"%.3f" % (ms / 1000)).rstrip(b"0")
    if not minutes:
        return b"%bs" % seconds
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%bs" % (hours, minutes, seconds) if hours else b"%dm%bs" % (minutes, seconds)


# Right after a request, the window is as it began once that request has left it.
_EXACT_RESET = duration(window.MINUTE_NS)
_COARSE_RESET = duration(window.MINUTE_NS + window.QUANTUM_NS)


def headers_of(
    words: memoryview[int], fewest: Fewest | None, lowest: Lowest | None, now_ns: int, tokens: int, *, counted: bool
) -> Headers:
    """Of the tightest bounds, by what is left after a request of so many `tokens`; `counted`: it has passed."""
    headers: Headers = []
    if fewest is not None:
        left, entry = fewest
        limit = entry.requests or 0
        if not counted:
            reset = duration(window.reset_ns(words, entry.at + WINDOW, now_ns))
        else:
            reset = _EXACT_RESET if limit <= window.EXACT else _COARSE_RESET
        headers += (
            (b"x-ratelimit-limit-requests", entry.requests_text),
            (b"x-ratelimit-remaining-requests", b"%d" % max(0, left if counted else left + 1)),
            (b"x-ratelimit-reset-requests", reset),
        )
    if lowest is not None:
        left, level, entry = lowest
        level += tokens * SCALE if counted else 0
        rate = entry.tokens or 1
        headers += (
            (b"x-ratelimit-limit-tokens", entry.tokens_text),
            (b"x-ratelimit-remaining-tokens", b"%d" % max(0, left if counted else left + tokens)),
            (b"x-ratelimit-reset-tokens", duration(bucket.wait_ns(level, rate, rate))),
        )
    return headers
