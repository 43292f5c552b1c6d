"""What an HTTP status comes to, as the audit log and the metrics tell it."""

from __future__ import annotations

from typing import Literal

__all__ = ["Outcome", "outcome_of"]

type Outcome = Literal["ok", "refused", "error", "cancelled", "lost"]

CLIENT_GONE = 499


def outcome_of(status: int) -> Outcome:
    """Of an answer."""
    if status < 400:
        return "ok"
    if status == CLIENT_GONE:
        return "cancelled"
    return "refused" if status < 500 else "error"
