"""What a caller is told of its bounds: headers as OpenAI has them, and refusals that say which bound it was and when to
come back.
"""

from __future__ import annotations

from typing import NamedTuple

from citadel_llm.api.errors import ApiError
from citadel_llm.api.limits.plan import Entry

__all__ = ["Refusal", "duration", "refusal_error"]

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
