"""Callers that are nobody: counted, and told in one row a minute, so that they make nothing grow."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["Refusals"]

_SAMPLES = 5
_REASONS = 16


class Refusals:
    """Since the last row."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._addresses: list[str] = []

    def note(self, reason: str, client: str | None) -> None:
        """One more. `reason` is the refusal's code, of which there are few."""
        if reason in self._counts or len(self._counts) < _REASONS:
            self._counts[reason] += 1
        if client and len(self._addresses) < _SAMPLES and client not in self._addresses:
            self._addresses.append(client)

    def take(self) -> dict[str, Any] | None:
        """What there was, and begin anew; None where there was nothing."""
        if not self._counts:
            return None
        found = {"counts": dict(self._counts), "addresses": self._addresses}
        self._counts, self._addresses = Counter(), []
        return found
