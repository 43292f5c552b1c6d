"""What the client of Qdrant counts, as Prometheus metrics."""

from __future__ import annotations

from functools import cached_property

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from citadel_llm.integration.vector.metrics import CallOutcome, LookupOutcome, Operation

__all__ = ["VectorCounters"]

_PREFIX = "citadel_gateway_vector"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class VectorCounters:
    """Implements `VectorMetrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._calls = Counter(
            f"{_PREFIX}_calls",
            "Calls to Qdrant: ok, refused by it, unavailable, rejected by the breaker",
            ["operation", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}_call_seconds",
            "How long a call took, its retries included",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._retries = Counter(f"{_PREFIX}_retries", "Attempts that were made again", registry=registry)
        lookups = Counter(
            f"{_PREFIX}_cache_lookups", "Searches that the cache was asked for", ["outcome"], registry=registry
        )
        self._lookups: dict[LookupOutcome, Counter] = {"hit": lookups.labels("hit"), "miss": lookups.labels("miss")}
        self._breaker = Gauge(
            f"{_PREFIX}_breaker_state",
            "0 closed, 1 half open, 2 open; the most that any instance says",
            registry=registry,
            multiprocess_mode="livemax",
        )

    @cached_property
    def up(self) -> Gauge:
        """Made when first used: where it is turned off, it is not down."""
        return Gauge(
            f"{_PREFIX}_up",
            "1 where Qdrant answered last; the least that any instance says",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    def called(self, operation: Operation, outcome: CallOutcome, seconds: float) -> None:
        """A call ended, its retries included."""
        self._calls.labels(operation, outcome).inc()
        if outcome != "rejected":
            self._seconds.labels(operation).observe(seconds)

    def retried(self) -> None:
        """An attempt was made again."""
        self._retries.inc()

    def looked_up(self, outcome: LookupOutcome) -> None:
        """A search was looked for in the cache."""
        self._lookups[outcome].inc()

    def breaker(self, state: int) -> None:
        """The breaker is in another state."""
        self._breaker.set(state)
