"""What the cache tells whoever counts."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["CacheMetrics", "NoMetrics", "Outcome"]

# shared: answered by another caller's request of the same key that was under way; store: not looked for, but kept
type Outcome = Literal["hit", "shared", "miss", "store", "bypass"]


class CacheMetrics(Protocol):
    """Called on the hot path: no call may block or raise."""

    def answered(self, outcome: Outcome) -> None:
        """A request that could have been cached was answered."""

    def looked_up(self, seconds: float) -> None:
        """Redis answered a look-up."""

    def replayed(self, size_bytes: int) -> None:
        """An answer was sent from the cache."""

    def stored(self, size_bytes: int) -> None:
        """An answer was given to Redis."""

    def failed(self, operation: Literal["get", "set"]) -> None:
        """Redis did not do it."""


class NoMetrics:
    """Counts nothing."""

    def answered(self, outcome: Outcome) -> None:
        """Nothing."""

    def looked_up(self, seconds: float) -> None:
        """Nothing."""

    def replayed(self, size_bytes: int) -> None:
        """Nothing."""

    def stored(self, size_bytes: int) -> None:
        """Nothing."""

    def failed(self, operation: Literal["get", "set"]) -> None:
        """Nothing."""
