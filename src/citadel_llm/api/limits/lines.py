"""What a caller is told of its bounds in the head of each answer, as OpenAI tells it: lines, each with its end.

f"{requests_line(limit, reset)}{left}\\r\\n"
f"{tokens_line(limit)}{left}\\r\\nx-ratelimit-reset-tokens: {duration(ns)}\\r\\n"
"""

from __future__ import annotations

from citadel_llm.api.limits import window

__all__ = ["duration", "passed_reset", "requests_line", "tokens_line"]


def duration(ns: int) -> str:
    """A length of time, rounded up to milliseconds: `6ms`, `1.5s`, `1m0s`, `2h0m0s`."""
    ms = -(-ns // 1_000_000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    seconds = str(ms // 1000) if not ms % 1000 else f"{ms / 1000:.3f}".rstrip("0")
    if not minutes:
        return f"{seconds}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"


_EXACT_RESET = duration(window.MINUTE_NS)
_COARSE_RESET = duration(window.MINUTE_NS + window.QUANTUM_NS)


def passed_reset(limit: int) -> str:
    """When nothing counts any more: right after a request, once that has left the window."""
    return _EXACT_RESET if limit <= window.EXACT else _COARSE_RESET


def requests_line(limit: int, reset: str) -> str:
    """The bound and how long until all of it is there again (`duration`); how many are left is to follow."""
    return (
        f"x-ratelimit-limit-requests: {limit}\r\nx-ratelimit-reset-requests: {reset}\r\n"
        "x-ratelimit-remaining-requests: "
    )


def tokens_line(limit: int) -> str:
    """The bound; how many are left is to follow."""
    return f"x-ratelimit-limit-tokens: {limit}\r\nx-ratelimit-remaining-tokens: "
