"""What is told of the calls to Qdrant; citadel_llm/integration/metrics/vector.py counts it."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["CallOutcome", "LookupOutcome", "Operation", "VectorMetrics"]

type Operation = Literal["ping", "search", "scroll", "retrieve", "count", "upsert", "delete", "set_payload", "admin"]
# refused: Qdrant says that the request is wrong; rejected: not sent, since it did not answer lately
type CallOutcome = Literal["ok", "refused", "unavailable", "rejected"]
type LookupOutcome = Literal["hit", "miss"]


class VectorMetrics(Protocol):
    """Implemented by the gateway's registry."""

    def called(self, operation: Operation, outcome: CallOutcome, seconds: float) -> None:
        """A call ended, its retries included."""

    def retried(self) -> None:
        """An attempt was made again."""

    def looked_up(self, outcome: LookupOutcome) -> None:
        """A search was looked for in the cache."""

    def breaker(self, state: int) -> None:
        """The breaker is in another state: 0 closed, 1 half open, 2 open."""
