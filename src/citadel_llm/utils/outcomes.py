"""What became of a request, in the words of the audit log, the metrics and the refusals."""

from __future__ import annotations

from typing import Any, Literal, get_args

__all__ = ["Limit", "NotAdmitted", "Outcome", "UnknownCaller", "outcome_of", "words_of"]

type Outcome = Literal["ok", "refused", "error", "cancelled", "lost"]
type UnknownCaller = Literal["missing_api_key", "invalid_api_key", "expired_api_key", "invalid_credentials"]
type NotAdmitted = Literal["queue_full", "key_queue_full", "wait_too_long"]  # by a model that is busy
type Limit = Literal["requests_per_minute", "tokens_per_minute", "concurrent_requests"]  # fields of `Bounds`

CLIENT_GONE = 499


def words_of(type_: Any) -> tuple[str, ...]:
    """All that a type of this module may be."""
    return get_args(type_.__value__)


def outcome_of(status: int) -> Outcome:
    """Of an answer."""
    if status < 400:
        return "ok"
    if status == CLIENT_GONE:
        return "cancelled"
    return "refused" if status < 500 else "error"
