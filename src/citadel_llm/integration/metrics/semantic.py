"""What the semantic cache counts, as Prometheus metrics."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["SemanticCounters"]

_PREFIX = "citadel_gateway_semantic"


class SemanticCounters:
    """Look-ups and what came of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lookups = Counter(
            f"{_PREFIX}_lookups",
            "Requests of keys that take part: hit, miss, bypass (of another kind, or something was away)",
            ["outcome"],
            registry=registry,
        )
        self._guarded = Counter(
            f"{_PREFIX}_guarded",
            "Near questions whose answer was not given, for a difference in them",
            registry=registry,
        )
        self._kept = Counter(f"{_PREFIX}_kept", "Answers that were kept", registry=registry)
        self._seconds = Histogram(
            f"{_PREFIX}_lookup_seconds",
            "How long it took to look, the question's vector included",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
            registry=registry,
        )

    def looked(self, outcome: Literal["hit", "miss", "bypass"]) -> None:
        """A request was looked for."""
        self._lookups.labels(outcome).inc()

    def guarded(self) -> None:
        """One was near enough, and not given."""
        self._guarded.inc()

    def kept(self) -> None:
        """An answer was kept."""
        self._kept.inc()

    def took(self, seconds: float) -> None:
        """It took so long."""
        self._seconds.observe(seconds)
